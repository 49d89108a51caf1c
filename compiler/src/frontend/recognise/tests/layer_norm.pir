# As exported: mean and variance keep their axes, the root is of the variance of [2,4,1].
graph layer_norm

var w: f32[8] param weights("w")
var b: f32[8] param weights("b")

forward:
  %x = input {name="x"} : f32[2,4,8]
  %w = var {name="w"} : f32[8]
  %b = var {name="b"} : f32[8]
  %sum = reduce %x {f=sum, axes=[2]}
  %mean = scale %sum {by=0.125}
  %m1 = reshape %mean {shape=[2,4,1]}
  %mb = broadcast %m1 {shape=[2,4,8]}
  %c = binary %x, %mb {f=sub}
  %cc = binary %c, %c {f=mul}
  %sq = reduce %cc {f=sum, axes=[2]}
  %var = scale %sq {by=0.125}
  %v1 = reshape %var {shape=[2,4,1]}
  %eps = const {data=f32[1,1,1](1e-5)}
  %epsb = broadcast %eps {shape=[2,4,1]}
  %ve = binary %v1, %epsb {f=add}
  %sd = unary %ve {f=sqrt}
  %sdb = broadcast %sd {shape=[2,4,8]}
  %n = binary %c, %sdb {f=div} @norm
  %w1 = reshape %w {shape=[1,1,8]}
  %wb = broadcast %w1 {shape=[2,4,8]}
  %nw = binary %n, %wb {f=mul} @scaled
  %b1 = reshape %b {shape=[1,1,8]}
  %bb = broadcast %b1 {shape=[2,4,8]}
  %y = binary %bb, %nw {f=add} @shifted

result y = %y
