graph "scale-of-scale"

forward:
  %x = input {name="x"} : f32[2,3] @x
  %a = scale %x {by=0.25} @a
  %y = scale %a {by=3} @y

result "y" = %y
