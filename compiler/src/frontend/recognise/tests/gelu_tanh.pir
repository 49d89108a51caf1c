# The cube as a product, and factored out.
graph gelu_tanh

forward:
  %x = input {name="x"} : f32[2,3]
  %xx = binary %x, %x {f=mul}
  %xxx = binary %xx, %x {f=mul}
  %c = scale %xxx {by=0.044715}
  %s = binary %x, %c {f=add}
  %u = scale %s {by=0.7978846}
  %t = unary %u {f=tanh}
  %1 = const {data=f32[1,1](1)}
  %1b = broadcast %1 {shape=[2,3]}
  %t1 = binary %t, %1b {f=add}
  %h = scale %t1 {by=0.5}
  %y = binary %x, %h {f=mul} @gelu
  %yy = binary %y, %y {f=mul}
  %d = scale %yy {by=0.044715}
  %d1 = binary %1b, %d {f=add}
  %v0 = scale %y {by=0.7978846}
  %v = binary %v0, %d1 {f=mul}
  %w = unary %v {f=tanh}
  %w1 = binary %1b, %w {f=add}
  %yw = binary %y, %w1 {f=mul}
  %z = scale %yw {by=0.5} @gelu2

result y = %z
