graph "transpose-of-transpose"

forward:
  %x = input {name="x"} : f32[2,3,4] @x
  %a = transpose %x {perm=[1,2,0]} @a
  %b = transpose %a {perm=[0,2,1]} @b
  %y = unary %b {f=exp} @y

result "y" = %y
