graph "add-zero"

forward:
  %x = input {name="x"} : f32[2,3] @x
  %c = const {data=f32[1,1](0)} @c
  %z = broadcast %c {shape=[2,3]} @z
  %e = unary %x {f=exp} @e
  %a = binary %e, %z {f=add} @a
  %b = binary %z, %a {f=add} @b
  %y = binary %b, %z {f=sub} @y

result "y" = %y
