graph "negate-twice"

forward:
  %x = input {name="x"} : f32[2,3] @x
  %e = unary %x {f=exp} @e
  %a = unary %e {f=neg} @a
  %y = unary %a {f=neg} @y

result "y" = %y
