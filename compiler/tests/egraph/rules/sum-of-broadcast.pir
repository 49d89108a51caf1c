graph "sum-of-broadcast"

forward:
  %x = input {name="x"} : f32[1,3,1] @x
  %a = broadcast %x {shape=[4,3,5]} @a
  %y = reduce %a {f=sum, axes=[0,2]} @y

result "y" = %y
