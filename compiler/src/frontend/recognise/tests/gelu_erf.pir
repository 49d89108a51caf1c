# x/√2 as a quotient, factors in PyTorch's order; then ½ multiplied in first.
graph gelu_erf

forward:
  %x = input {name="x"} : f32[2,3]
  %r = const {data=f32[1,1](1.4142135)}
  %rb = broadcast %r {shape=[2,3]}
  %u = binary %x, %rb {f=div}
  %e = unary %u {f=erf}
  %1 = const {data=f32[1,1](1)}
  %1b = broadcast %1 {shape=[2,3]}
  %t = binary %e, %1b {f=add}
  %xt = binary %x, %t {f=mul}
  %y = scale %xt {by=0.5} @gelu
  %v = scale %y {by=0.70710677}
  %f = unary %v {f=erf}
  %s = binary %1b, %f {f=add}
  %h = scale %y {by=0.5}
  %z = binary %h, %s {f=mul} @gelu2

result y = %z
