graph "transpose-of-broadcast"

forward:
  %x = input {name="x"} : f32[1,3,4] @x
  %a = broadcast %x {shape=[2,3,4]} @a
  %b = transpose %a {perm=[0,2,1]} @b
  %y = unary %b {f=exp} @y

result "y" = %y
