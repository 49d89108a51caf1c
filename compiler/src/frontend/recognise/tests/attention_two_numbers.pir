# Two selections of different numbers, one of them not far below the scores: no mask says both.
graph attention_two_numbers

forward:
  %q = input {name="q"} : f32[1,2,3,4]
  %kt = input {name="kt"} : f32[1,2,4,3]
  %v = input {name="v"} : f32[1,2,3,4]
  %s = matmul %q, %kt {fused=none}
  %future = const {data=bool[1,1,3,3](0, 1, 1, 0, 0, 1, 0, 0, 0)}
  %futureb = broadcast %future {shape=[1,2,3,3]}
  %off = const {data=f32[1,1,1,1](-1e4)}
  %offb = broadcast %off {shape=[1,2,3,3]}
  %sm = select %futureb, %offb, %s
  %pad = const {data=bool[1,1,1,3](1, 0, 1)}
  %padb = broadcast %pad {shape=[1,2,3,3]}
  %low = const {data=f32[1,1,1,1](-20)}
  %lowb = broadcast %low {shape=[1,2,3,3]}
  %sp = select %padb, %sm, %lowb
  %p = softmax %sp {log=false}
  %y = matmul %p, %v {fused=none} @attention

result y = %y
