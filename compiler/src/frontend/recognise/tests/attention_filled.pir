# Scores filled with a number that is not far below all others, one row of the mask throughout: the
# mask chooses, it is not added.
graph attention_filled

forward:
  %q = input {name="q"} : f32[1,2,3,4]
  %kt = input {name="kt"} : f32[1,2,4,3]
  %v = input {name="v"} : f32[1,2,3,4]
  %s = matmul %q, %kt {fused=none}
  %mask = const {data=bool[1,1,3,3](0, 1, 1, 1, 1, 1, 1, 0, 0)}
  %maskb = broadcast %mask {shape=[1,2,3,3]}
  %off = const {data=f32[1,1,1,1](-3.0)}
  %offb = broadcast %off {shape=[1,2,3,3]}
  %sm = select %maskb, %offb, %s
  %p = softmax %sm {log=false}
  %y = matmul %p, %v {fused=none} @attention

result y = %y
