# With product-bias first: both results of a fused GELU are used.
graph "product-bias-activation"

forward:
  %x = input {name="x"} : f32[6,4] @x
  %w = input {name="w"} : f32[4,5] @w
  %b = input {name="b"} : f32[5] @b
  %dy = input {name="dy"} : f32[6,5] @dy
  %mm = matmul %x, %w, %b {fused=bias} @fc/Gemm
  %relu = activate %mm {act=relu} @relu
  %gelu = activate %mm {act=gelu} @gelu
  %dx = activate_grad %mm, %dy {act=gelu} @dx

result "relu" = %relu
result "gelu" = %gelu
result "dx" = %dx
