# A literal mask through `where`, keys transposed with their heads in one step.
graph attention_causal

forward:
  %q = input {name="q"} : f32[1,2,3,4]
  %k0 = input {name="k"} : f32[1,3,2,4]
  %v = input {name="v"} : f32[1,2,3,4]
  %kt = transpose %k0 {perm=[0,2,3,1]}
  %s = matmul %q, %kt {fused=none}
  %sc = scale %s {by=0.5}
  %mask = const {data=bool[1,1,3,3](0, 1, 1, 0, 0, 1, 0, 0, 0)}
  %maskb = broadcast %mask {shape=[1,2,3,3]}
  %off = const {data=f32[1,1,1,1](-inf)}
  %offb = broadcast %off {shape=[1,2,3,3]}
  %sm = select %maskb, %offb, %sc
  %p = softmax %sm {log=false}
  %y = matmul %p, %v {fused=none} @attention

result y = %y
