# A selection that is causal under an added mask of padding: minus infinity is so under any number, and
# leaves no probability whose gradient could differ.
graph attention_two_masks

forward:
  %q = input {name="q"} : f32[1,2,3,4]
  %kt = input {name="kt"} : f32[1,2,4,3]
  %v = input {name="v"} : f32[1,2,3,4]
  %s = matmul %q, %kt {fused=none}
  %sc = scale %s {by=0.5}
  %future = const {data=bool[1,1,3,3](0, 1, 1, 0, 0, 1, 0, 0, 0)}
  %futureb = broadcast %future {shape=[1,2,3,3]}
  %off = const {data=f32[1,1,1,1](-inf)}
  %offb = broadcast %off {shape=[1,2,3,3]}
  %sm = select %futureb, %offb, %sc
  %pad = const {data=f32[1,1,1,3](-3.4028235e38, 0, 0)}
  %padb = broadcast %pad {shape=[1,2,3,3]}
  %sp = binary %sm, %padb {f=add}
  %p = softmax %sp {log=false}
  %y = matmul %p, %v {fused=none} @attention

result y = %y
