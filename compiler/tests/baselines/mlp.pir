graph mlp

var fc1.weight: f32[512,784] param weights("fc1.weight")
var fc1.bias: f32[512] param weights("fc1.bias")
var fc2.weight: f32[10,512] param weights("fc2.weight")
var fc2.bias: f32[10] param weights("fc2.bias")

forward:
  %0 = input {name="x"} : f32[64,784] @x
  %1 = var {name="fc1.weight"} : f32[512,784] @fc1.weight
  %2 = var {name="fc1.bias"} : f32[512] @fc1.bias
  %3 = transpose %1 {perm=[1,0]} @fc1.transpose
  %4 = matmul %0, %3 {fused=none} @fc1
  %5 = reshape %2 {shape=[1,512]} @fc1.reshape
  %6 = broadcast %5 {shape=[64,512]} @fc1.broadcast
  %7 = binary %4, %6 {f=add} @fc1.add
  %8 = activate %7 {act=relu} @relu
  %9 = var {name="fc2.weight"} : f32[10,512] @fc2.weight
  %10 = var {name="fc2.bias"} : f32[10] @fc2.bias
  %11 = transpose %9 {perm=[1,0]} @fc2.transpose
  %12 = matmul %8, %11 {fused=none} @fc2
  %13 = reshape %10 {shape=[1,10]} @fc2.reshape
  %14 = broadcast %13 {shape=[64,10]} @fc2.broadcast
  %15 = binary %12, %14 {f=add} @fc2.add

result out.logits = %15
