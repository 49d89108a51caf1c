graph "scale-into-product"

forward:
  %a = input {name="a"} : f32[8,2] @a
  %b = input {name="b"} : f32[2,6] @b
  %ab = matmul %a, %b {fused=none} @ab
  %y = scale %ab {by=0.25} @y

result "y" = %y
