graph "multiply-by-literal"

forward:
  %x = input {name="x"} : f32[2,3] @x
  %c = const {data=f32[1,1](0.5)} @c
  %z = broadcast %c {shape=[2,3]} @z
  %a = binary %x, %z {f=mul} @a
  %y = binary %z, %a {f=mul} @y

result "y" = %y
