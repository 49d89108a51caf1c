# Rows over their length, at least 1e-12: for a row of zeros the gradient is 1e12 times the cotangent.
graph l2

var a: f32[256,256] param uniform(0.1, 1)
var h: f32[256,256] param uniform(0.1, 1)

forward:
  %x = input {name="x"} : f32[512,256] @x
  %a = var {name="a"} : f32[256,256] @a
  %p = matmul %x, %a {fused=none} @fc
  %s = binary %p, %p {f=mul} @square
  %t = reduce %s {f=sum, axes=[1]} @sum
  %n = unary %t {f=sqrt} @norm
  %m = reshape %n {shape=[512,1]} @norm.column
  %e = const {data=f32[1,1](1e-12)} @eps
  %f = broadcast %e {shape=[512,1]} @eps.column
  %u = binary %m, %f {f=lt} @under
  %c = select %u, %f, %m @clip
  %d = broadcast %c {shape=[512,256]} @clip.wide
  %q = binary %p, %d {f=div} @quotient
  %h = var {name="h"} : f32[256,256] @h
  %y = matmul %q, %h {fused=none} @logits

result out.logits = %y
