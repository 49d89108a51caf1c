graph rms_norm

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
  %r = unary %sd {f=recip}
  %rb = broadcast %r {shape=[2,4,8]}
  %n = binary %x, %rb {f=mul} @norm
  %w1 = reshape %w {shape=[1,1,8]}
  %wb = broadcast %w1 {shape=[2,4,8]}
  %y = binary %wb, %n {f=mul} @scaled

result y = %y
