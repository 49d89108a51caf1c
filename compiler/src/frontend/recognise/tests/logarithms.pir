# Logarithms and exponentials as exporters write them.
graph logarithms

forward:
  %x = input {name="x"} : f32[3,4]
  %z = input {name="z"} : f32[3,4]
  %c = const {data=f32[1,1](1.0)} : f32[1,1]
  %one = broadcast %c {shape=[3,4]}
  # log σ(x)
  %s = unary %x {f=sigmoid} @s
  %a = unary %s {f=log} @a
  # log (1 − σ(x)), in both spellings
  %r = binary %one, %s {f=sub} @r
  %b = unary %r {f=log} @b
  %ns = unary %s {f=neg}
  %r2 = binary %ns, %one {f=add}
  %b2 = unary %r2 {f=log} @b2
  # log softmax behind a movement
  %p = softmax %x {log=false} @p
  %pt = transpose %p {perm=[1,0]} @pt
  %d = unary %pt {f=log} @d
  # log (1 + exp x), log (1 + z²)
  %e = unary %x {f=exp} @e
  %e1 = binary %one, %e {f=add} @e1
  %f = unary %e1 {f=log} @f
  %zz = binary %z, %z {f=mul} @zz
  %zz1 = binary %zz, %one {f=add}
  %g = unary %zz1 {f=log} @g
  # log (exp x + exp z)
  %ez = unary %z {f=exp} @ez
  %ee = binary %e, %ez {f=add} @ee
  %h = unary %ee {f=log} @h
  # log Σ exp, with the axis kept
  %sum = reduce %ez {f=sum, axes=[1]} @sum
  %kept = reshape %sum {shape=[3,1]} @kept
  %i = unary %kept {f=log} @i
  # exp x − 1, 1 / (1 + exp(−z))
  %j = binary %e, %one {f=sub} @j
  %nz = unary %z {f=neg} @nz
  %enz = unary %nz {f=exp} @enz
  %den = binary %enz, %one {f=add} @den
  %k = unary %den {f=recip} @k
  # x minus its largest element
  %max = extremum %x {f=max, axis=1} @max
  %mk = reshape %max {shape=[3,1]}
  %mb = broadcast %mk {shape=[3,4]}
  %l = binary %x, %mb {f=sub} @l

result out.a = %a
result out.b = %b
result out.b2 = %b2
result out.d = %d
result out.f = %f
result out.g = %g
result out.h = %h
result out.i = %i
result out.j = %j
result out.k = %k
result out.l = %l
