# Root mean squares, and a layer scale too small for f16; then powers (GeM) and an exponential.
graph rms

var a: f32[256,256] param uniform(0.1, 1)
var w: f32[256] param value(1.0)
var h: f32[256,256] param uniform(0.1, 1)

forward:
  %x = input {name="x"} : f32[512,256] @x
  %a = var {name="a"} : f32[256,256] @a
  %p = matmul %x, %a {fused=none} @fc
  %s = binary %p, %p {f=mul} @square
  %t = reduce %s {f=sum, axes=[1]} @sum
  %m = scale %t {by=0.00390625} @mean
  %m1 = reshape %m {shape=[512,1]} @mean.column
  %e = const {data=f32[1,1](1e-6)} @eps
  %f = broadcast %e {shape=[512,1]} @eps.column
  %v = binary %m1, %f {f=add} @var
  %r = unary %v {f=rsqrt} @rstd
  %rb = broadcast %r {shape=[512,256]} @rstd.wide
  %n = binary %p, %rb {f=mul} @normalised
  %w = var {name="w"} : f32[256] @w
  %w1 = reshape %w {shape=[1,256]} @w.row
  %wb = broadcast %w1 {shape=[512,256]} @w.wide
  %q = binary %n, %wb {f=mul} @scaled
  %h = var {name="h"} : f32[256,256] @h
  %g = matmul %q, %h {fused=none} @inner
  %z = const {data=f32[1,1](1e-6)} @floor
  %zb = broadcast %z {shape=[512,256]} @floor.wide
  %k = binary %g, %zb {f=max} @clamp
  %k2 = binary %k, %k {f=mul} @clamp.2
  %k3 = binary %k2, %k {f=mul} @clamp.3
  %o = scale %k3 {by=0.5} @half
  %i = unary %o {f=tanh} @bounded
  %j = scale %i {by=1e-8} @small
  %l = binary %i, %j {f=add} @both
  %y = matmul %l, %h {fused=none} @logits

result out.logits = %y
