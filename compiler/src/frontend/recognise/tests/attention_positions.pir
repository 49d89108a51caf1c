# Causality as a comparison of positions, under an added mask that is bounded: attention that is causal
# and masked.
graph attention_positions

forward:
  %q = input {name="q"} : f32[1,2,3,4]
  %kt = input {name="kt"} : f32[1,2,4,3]
  %v = input {name="v"} : f32[1,2,3,4]
  %keep = input {name="keep"} : bool[1,1,1,3]
  %s = matmul %q, %kt {fused=none}
  %row = iota {shape=[1,1,3,3], axis=2}
  %col = iota {shape=[1,1,3,3], axis=3}
  %seen = binary %col, %row {f=le}
  %seenb = broadcast %seen {shape=[1,2,3,3]}
  %least = const {data=f32[1,1,1,1](-3.4028235e38)}
  %leastb = broadcast %least {shape=[1,2,3,3]}
  %sm = select %seenb, %s, %leastb
  %kept = unary %keep {f=to_real}
  %one = const {data=f32[1,1,1,1](1)}
  %oneb = broadcast %one {shape=[1,1,1,3]}
  %hidden = binary %oneb, %kept {f=sub}
  %added = scale %hidden {by=-1e4}
  %addedb = broadcast %added {shape=[1,2,3,3]}
  %sp = binary %sm, %addedb {f=add}
  %p = softmax %sp {log=false}
  %y = matmul %p, %v {fused=none} @attention

result y = %y
