# A square matrix whose row statistics are applied to its columns: not a layer normalisation.
graph wrong_axis

forward:
  %x = input {name="x"} : f32[4,4]
  %sum = reduce %x {f=sum, axes=[1]}
  %mean = scale %sum {by=0.25}
  %m1 = reshape %mean {shape=[1,4]}
  %mb = broadcast %m1 {shape=[4,4]}
  %c = binary %x, %mb {f=sub}
  %cc = binary %c, %c {f=mul}
  %sq = reduce %cc {f=sum, axes=[1]}
  %var = scale %sq {by=0.25}
  %v1 = reshape %var {shape=[1,4]}
  %eps = const {data=f32[1,1](1e-5)}
  %epsb = broadcast %eps {shape=[1,4]}
  %ve = binary %v1, %epsb {f=add}
  %r = unary %ve {f=rsqrt}
  %rb = broadcast %r {shape=[4,4]}
  %y = binary %c, %rb {f=mul}

result y = %y
