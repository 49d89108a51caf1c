# A mask that is data: padding, kept where true.
graph attention_masked

forward:
  %q = input {name="q"} : f32[2,2,3,4]
  %kt = input {name="kt"} : f32[2,2,4,3]
  %v = input {name="v"} : f32[2,2,3,4]
  %keep = input {name="keep"} : i64[2,3]
  %kb = unary %keep {f=to_bool}
  %k4 = reshape %kb {shape=[2,1,1,3]}
  %kbb = broadcast %k4 {shape=[2,2,3,3]}
  %s = matmul %q, %kt {fused=none}
  %off = const {data=f32[1,1,1,1](-1e9)}
  %offb = broadcast %off {shape=[2,2,3,3]}
  %sm = select %kbb, %s, %offb
  %p = softmax %sm {log=false}
  %y = matmul %p, %v {fused=none} @attention

result y = %y
