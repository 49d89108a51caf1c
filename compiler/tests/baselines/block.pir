graph block

var ln.weight: f32[16] param weights("ln.weight")
var ln.bias: f32[16] param weights("ln.bias")
var q.weight: f32[16,16] param weights("q.weight")
var k.weight: f32[16,16] param weights("k.weight")
var head.weight: f32[16,10] param weights("head.weight")
var gain: f32[16] param weights("gain")

forward:
  %x = input {name="x"} : f32[8,16] @x
  %w = var {name="ln.weight"} : f32[16] @ln.weight
  %b = var {name="ln.bias"} : f32[16] @ln.bias
  %n, %mean, %rstd = layer_norm %x, %w, %b {eps=1e-5, axes=1, center=true} @ln
  %qw = var {name="q.weight"} : f32[16,16] @q.weight
  %kw = var {name="k.weight"} : f32[16,16] @k.weight
  %q = matmul %n, %qw {fused=none} @q
  %k = matmul %n, %kw {fused=none} @k
  %kt = transpose %k {perm=[1,0]} @k.transpose
  %s = matmul %q, %kt {fused=none} @scores
  %p = softmax %s {log=false} @softmax
  %o = matmul %p, %k {fused=none} @mix
  %g = activate %o {act=gelu} @gelu
  %gain = var {name="gain"} : f32[16] @gain
  %wide = reshape %gain {shape=[1,16]} @gain.row
  %all = broadcast %wide {shape=[8,16]} @gain.all
  %scaled = binary %g, %all {f=mul} @scaled
  %r = binary %x, %scaled {f=add} @residual
  %e = unary %r {f=exp} @exp
  %hw = var {name="head.weight"} : f32[16,10] @head.weight
  %y = matmul %e, %hw {fused=none} @head

result out.logits = %y
