graph "divide-by-literal"

forward:
  %x = input {name="x"} : f32[2,3] @x
  %c = const {data=f32[1,1](3)} @c
  %z = broadcast %c {shape=[2,3]} @z
  %y = binary %x, %z {f=div} @y

result "y" = %y
