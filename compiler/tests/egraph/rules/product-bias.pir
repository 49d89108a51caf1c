graph "product-bias"

forward:
  %x = input {name="x"} : f32[6,4] @x
  %w = input {name="w"} : f32[4,5] @w
  %b = input {name="b"} : f32[5] @b
  %mm = matmul %x, %w {fused=none} @fc/MatMul
  %mm3 = reshape %mm {shape=[2,3,5]} @mm3
  %b3 = reshape %b {shape=[1,1,5]} @b3
  %wide = broadcast %b3 {shape=[2,3,5]} @wide
  %y = binary %mm3, %wide {f=add} @fc/Add

result "y" = %y
