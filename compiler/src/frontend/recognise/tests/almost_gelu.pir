# Wrong constants, and an intermediate value that something else reads: left alone.
graph almost_gelu

forward:
  %x = input {name="x"} : f32[2,3]
  %u = scale %x {by=0.7}
  %e = unary %u {f=erf}
  %1 = const {data=f32[1,1](1)}
  %1b = broadcast %1 {shape=[2,3]}
  %t = binary %e, %1b {f=add}
  %xt = binary %x, %t {f=mul}
  %y = scale %xt {by=0.5}
  %v = scale %x {by=0.70710677}
  %f = unary %v {f=erf}
  %s = binary %f, %1b {f=add}
  %xs = binary %x, %s {f=mul}
  %z = scale %xs {by=0.5}
  %sig = unary %x {f=sigmoid}
  %sl = binary %x, %sig {f=mul}

result y = %y
result z = %z
result erf = %f
result silu = %sl
result sigmoid = %sig
