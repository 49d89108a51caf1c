# Through what the gradient of a small network is made of, to the seed.
graph "scale-motion"

var machine.loss_scale: f32[] machine value(1024)
var b: f32[5] param zeros

forward:
  %x = input {name="x"} : f32[6,4] @x
  %w = input {name="w"} : f32[4,5] @w
  %t = input {name="t"} : i64[6] @t
  %mm = matmul %x, %w {fused=none} @mm
  %relu = activate %mm {act=relu} @relu
  %loss, %most, %log = cross_entropy %relu, %t {ignore_index=-100, label_smoothing=0} @ce

backward:
  %seed = const {data=f32[](1)} @loss.seed
  %S = var {name="machine.loss_scale"} : f32[] @S
  %mean = scale %seed {by=0.125} @mean
  %mean1 = reshape %mean {shape=[1]} @mean1
  %dloss = broadcast %mean1 {shape=[6]} @dloss
  %dlogits = cross_entropy_grad %relu, %t, %most, %log, %dloss {ignore_index=-100, label_smoothing=0} @ce.grad
  %dmm = activate_grad %relu, %dlogits {act=relu} @relu.grad
  %xt = transpose %x {perm=[1,0]} @xt
  %dw = matmul %xt, %dmm {fused=none} @mm.grad
  %db = reduce %dmm {f=sum, axes=[0]} @bias.grad
  %sw = scale_by %S, %dw @dw.scaled
  %sb = scale_by %S, %db @db.scaled

result "dw" = %sw
result "db" = %sb
