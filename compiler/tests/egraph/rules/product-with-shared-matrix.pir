graph "product-with-shared-matrix"

forward:
  %x = input {name="x"} : f32[2,3,4] @x
  %w = input {name="w"} : f32[5,4] @w
  %w3 = reshape %w {shape=[1,5,4]} @w3
  %wide = broadcast %w3 {shape=[2,5,4]} @wide
  %wt = transpose %wide {perm=[0,2,1]} @wt
  %y = matmul %x, %wt {fused=none} @fc/MatMul

result "y" = %y
