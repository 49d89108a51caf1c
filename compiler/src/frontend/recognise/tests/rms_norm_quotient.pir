# The root inverted as a quotient of 1, and a weight that 1 is added to.
graph rms_norm_quotient

var w: f32[8] param weights("w")

forward:
  %x = input {name="x"} : f32[2,4,8]
  %w = var {name="w"} : f32[8]
  %xx = binary %x, %x {f=mul}
  %sum = reduce %xx {f=sum, axes=[2]}
  %mean = scale %sum {by=0.125}
  %m1 = reshape %mean {shape=[2,4,1]}
  %eps = const {data=f32[1,1,1](1e-6)}
  %epsb = broadcast %eps {shape=[2,4,1]}
  %ve = binary %m1, %epsb {f=add}
  %sd = unary %ve {f=sqrt}
  %one = const {data=f32[1,1,1](1.0)}
  %oneb = broadcast %one {shape=[2,4,1]}
  %r = binary %oneb, %sd {f=div}
  %rb = broadcast %r {shape=[2,4,8]}
  %n = binary %x, %rb {f=mul} @norm
  %unit = const {data=f32[1](1.0)}
  %units = broadcast %unit {shape=[8]}
  %wp = binary %w, %units {f=add} @plus
  %w1 = reshape %wp {shape=[1,1,8]}
  %wb = broadcast %w1 {shape=[2,4,8]}
  %y = binary %n, %wb {f=mul} @scaled

result y = %y
