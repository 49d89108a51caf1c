graph silu

forward:
  %x = input {name="x"} : f32[2,3]
  %s = unary %x {f=sigmoid}
  %y = binary %x, %s {f=mul} @silu

result y = %y
