graph convolutions

var first.weight: f32[32,3,3,3] param weights("first.weight")
var first.bias: f32[32] param weights("first.bias")
var second.weight: f32[64,32,3,3] param weights("second.weight")
var second.bias: f32[64] param weights("second.bias")
var plain.weight: f32[64,64,1,1] param weights("plain.weight")
var plain.bias: f32[64] param weights("plain.bias")
var third.weight: f32[64,64,3,3] param weights("third.weight")
var third.bias: f32[64] param weights("third.bias")
var grouped.weight: f32[64,16,3,3] param weights("grouped.weight")
var grouped.bias: f32[64] param weights("grouped.bias")
var last.weight: f32[32,64,3,3] param weights("last.weight")
var last.bias: f32[32] param weights("last.bias")
var head.weight: f32[10,2048] param weights("head.weight")

forward:
  %x = input {name="x"} : f32[16,3,32,32] @x
  %first_weight = var {name="first.weight"} : f32[32,3,3,3] @first.weight
  %first_bias = var {name="first.bias"} : f32[32] @first.bias
  %first_sum = conv2d %x, %first_weight {stride=[1,1], pad=[1,1,1,1], dilation=[1,1], groups=1} @first
  %first_row = reshape %first_bias {shape=[1,32,1,1]} @first.reshape
  %first_all = broadcast %first_row {shape=[16,32,32,32]} @first.broadcast
  %first = binary %first_sum, %first_all {f=add} @first.add
  %relu1 = activate %first {act=relu} @relu1
  %second_weight = var {name="second.weight"} : f32[64,32,3,3] @second.weight
  %second_bias = var {name="second.bias"} : f32[64] @second.bias
  %second_sum = conv2d %relu1, %second_weight {stride=[2,2], pad=[1,1,1,1], dilation=[1,1], groups=1} @second
  %second_row = reshape %second_bias {shape=[1,64,1,1]} @second.reshape
  %second_all = broadcast %second_row {shape=[16,64,16,16]} @second.broadcast
  %second = binary %second_sum, %second_all {f=add} @second.add
  %relu2 = activate %second {act=relu} @relu2
  %plain_weight = var {name="plain.weight"} : f32[64,64,1,1] @plain.weight
  %plain_bias = var {name="plain.bias"} : f32[64] @plain.bias
  %plain_sum = conv2d %relu2, %plain_weight {stride=[1,1], pad=[0,0,0,0], dilation=[1,1], groups=1} @plain
  %plain_row = reshape %plain_bias {shape=[1,64,1,1]} @plain.reshape
  %plain_all = broadcast %plain_row {shape=[16,64,16,16]} @plain.broadcast
  %plain = binary %plain_sum, %plain_all {f=add} @plain.add
  %residual = binary %plain, %relu2 {f=add} @residual
  %relu3 = activate %residual {act=relu} @relu3
  %third_weight = var {name="third.weight"} : f32[64,64,3,3] @third.weight
  %third_bias = var {name="third.bias"} : f32[64] @third.bias
  %third_sum = conv2d %relu3, %third_weight {stride=[1,1], pad=[1,1,1,1], dilation=[1,1], groups=1} @third
  %third_row = reshape %third_bias {shape=[1,64,1,1]} @third.reshape
  %third_all = broadcast %third_row {shape=[16,64,16,16]} @third.broadcast
  %third = binary %third_sum, %third_all {f=add} @third.add
  %gelu = activate %third {act=gelu} @gelu
  %grouped_weight = var {name="grouped.weight"} : f32[64,16,3,3] @grouped.weight
  %grouped_bias = var {name="grouped.bias"} : f32[64] @grouped.bias
  %grouped_sum = conv2d %gelu, %grouped_weight {stride=[1,1], pad=[1,1,1,1], dilation=[1,1], groups=4} @grouped
  %grouped_row = reshape %grouped_bias {shape=[1,64,1,1]} @grouped.reshape
  %grouped_all = broadcast %grouped_row {shape=[16,64,16,16]} @grouped.broadcast
  %grouped = binary %grouped_sum, %grouped_all {f=add} @grouped.add
  %relu4 = activate %grouped {act=relu} @relu4
  %last_weight = var {name="last.weight"} : f32[32,64,3,3] @last.weight
  %last_bias = var {name="last.bias"} : f32[32] @last.bias
  %last_sum = conv2d %relu4, %last_weight {stride=[2,2], pad=[1,1,1,1], dilation=[1,1], groups=1} @last
  %last_row = reshape %last_bias {shape=[1,32,1,1]} @last.reshape
  %last_all = broadcast %last_row {shape=[16,32,8,8]} @last.broadcast
  %last = binary %last_sum, %last_all {f=add} @last.add
  %relu5 = activate %last {act=relu} @relu5
  %flat = reshape %relu5 {shape=[16,2048]} @flat
  %head_weight = var {name="head.weight"} : f32[10,2048] @head.weight
  %head_t = transpose %head_weight {perm=[1,0]} @head.transpose
  %logits = matmul %flat, %head_t {fused=none} @head

result out.logits = %logits
