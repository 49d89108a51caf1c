# A learned bias on the scores has a gradient, which attention's mask does not: left alone.
graph attention_learned

var bias: f32[2,3,3] param weights("bias")

forward:
  %q = input {name="q"} : f32[1,2,3,4]
  %kt = input {name="kt"} : f32[1,2,4,3]
  %v = input {name="v"} : f32[1,2,3,4]
  %b = var {name="bias"} : f32[2,3,3]
  %b4 = reshape %b {shape=[1,2,3,3]}
  %s = matmul %q, %kt {fused=none}
  %sm = binary %s, %b4 {f=add}
  %p = softmax %sm {log=false}
  %y = matmul %p, %v {fused=none}

result y = %y
