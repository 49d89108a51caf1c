# Two layers over [2,3,…]: biases and the activation move onto the rows, the reshapes between cancel.
graph rows

var w: f32[4,5] param weights("w")
var b: f32[5] param weights("b")
var u: f32[5,4] param weights("u")

forward:
  %x = input {name="x"} : f32[2,3,4]
  %w = var {name="w"} : f32[4,5]
  %b = var {name="b"} : f32[5]
  %u = var {name="u"} : f32[5,4]
  %r = reshape %x {shape=[6,4]}
  %m = matmul %r, %w {fused=none} @fc1
  %m3 = reshape %m {shape=[2,3,5]}
  %b3 = reshape %b {shape=[1,1,5]}
  %bb = broadcast %b3 {shape=[2,3,5]}
  %h = binary %m3, %bb {f=add} @fc1.bias
  %a = activate %h {act=gelu} @gelu
  %ar = reshape %a {shape=[6,5]}
  %n = matmul %ar, %u {fused=none} @fc2
  %n3 = reshape %n {shape=[2,3,4]}
  %y = binary %x, %n3 {f=add} @residual

result y = %y
