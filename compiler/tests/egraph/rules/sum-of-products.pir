graph "sum-of-products"

forward:
  %x = input {name="x"} : f32[2,3,4] @x
  %dy = input {name="dy"} : f32[2,3,5] @dy
  %xt = transpose %x {perm=[0,2,1]} @xt
  %each = matmul %xt, %dy {fused=none} @each
  %dw = reduce %each {f=sum, axes=[0]} @dw

result "dw" = %dw
