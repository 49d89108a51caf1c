# Roots of products of sums of squares, their inverses, and what is no norm.
graph norms

forward:
  %a = input {name="a"} : f32[3,4]
  %b = input {name="b"} : f32[3,4]
  %t = input {name="t"} : f32[3]
  %aa = binary %a, %a {f=mul} @aa
  %bb = binary %b, %b {f=mul} @bb
  %sa = reduce %aa {f=sum, axes=[1]} @sa
  %sb = reduce %bb {f=sum, axes=[1]} @sb
  %p = binary %sa, %sb {f=mul} @p
  %root = unary %p {f=sqrt} @root
  %inverse = unary %p {f=rsqrt} @inverse
  %e = const {data=f32[1](0.25)} : f32[1] @e
  %eps = broadcast %e {shape=[3]} @eps
  %s = binary %sb, %eps {f=add} @s
  %q = binary %sa, %s {f=mul} @q
  %with_rest = unary %q {f=sqrt} @with_rest
  %u = binary %p, %eps {f=add} @u
  %with_eps = unary %u {f=sqrt} @with_eps
  %c = binary %aa, %bb {f=add} @c
  %elements = unary %c {f=sqrt} @elements
  %g = unary %t {f=abs} @g
  %h = binary %sa, %g {f=mul} @h
  %with_abs = unary %h {f=sqrt} @with_abs
  %tt = binary %sa, %t {f=mul} @tt
  %v = binary %tt, %t {f=mul} @v
  %of_unknown = unary %v {f=sqrt} @of_unknown

result root = %root
result inverse = %inverse
result with_rest = %with_rest
result with_eps = %with_eps
result elements = %elements
result with_abs = %with_abs
result of_unknown = %of_unknown
