graph "reshape-of-reshape"

forward:
  %x = input {name="x"} : f32[2,3,4] @x
  %a = reshape %x {shape=[6,4]} @a
  %b = reshape %a {shape=[3,8]} @b
  %y = unary %b {f=exp} @y

result "y" = %y
