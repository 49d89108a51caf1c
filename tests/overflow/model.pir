# Three products. The third column of w1 is so large that one row of the data takes the first
# activation beyond f16's largest number, 65504; everything after it is small again.
graph overflow
var w1: f32[3,4] param data(f32[3,4](1.0, 0.5, 30000.0, -0.5, -1.0, 0.25, 20000.0, 1.0, 0.5, -1.0, 10000.0, 1.0))
var w2: f32[4,4] param uniform(0.2, 1)
var gain: f32[4] param value(1.0)
var shift: f32[4] param zeros
var w3: f32[4,3] param uniform(0.8, 2)
forward:
  %x = input {name="x"} : f32[8,3]
  %w1 = var {name="w1"} : f32[3,4] @w1
  %w2 = var {name="w2"} : f32[4,4] @w2
  %gain = var {name="gain"} : f32[4] @gain
  %shift = var {name="shift"} : f32[4] @shift
  %w3 = var {name="w3"} : f32[4,3] @w3
  %h = matmul %x, %w1 {fused=none} @fc1
  %a = activate %h {act=relu} @wide
  %p = matmul %a, %w2 {fused=none} @fc2
  %n, %mean, %rstd = layer_norm %p, %gain, %shift {eps=1e-5, axes=1, center=true} @norm
  %b = activate %n {act=gelu} @act
  %y = matmul %b, %w3 {fused=none} @fc3
result out.y = %y
