# Safe softmax: a row without keys is 0, by a guard over NaN; the mask is a bool one made in the graph.
graph attention_safe

forward:
  %q = input {name="q"} : f32[1,2,3,4]
  %kt = input {name="kt"} : f32[1,2,4,3]
  %v = input {name="v"} : f32[1,2,3,4]
  %s = matmul %q, %kt {fused=none}
  %keep = const {data=bool[1,1,3,3](1, 0, 1, 0, 0, 0, 1, 1, 0)}
  %keepb = broadcast %keep {shape=[1,2,3,3]}
  %zero = const {data=f32[1,1,1,1](0)}
  %zerob = broadcast %zero {shape=[1,2,3,3]}
  %off = const {data=f32[1,1,1,1](-inf)}
  %offb = broadcast %off {shape=[1,2,3,3]}
  %mask = select %keepb, %zerob, %offb
  %sm = binary %s, %mask {f=add}
  %p = softmax %sm {log=false}
  %same = binary %p, %p {f=eq}
  %nan = unary %same {f=not}
  %safe = select %nan, %zerob, %p
  %y = matmul %safe, %v {fused=none} @attention

result y = %y
