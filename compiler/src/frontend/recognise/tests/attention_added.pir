# An added literal mask that is causal over longer keys; queries and keys each scaled by the root;
# no head axis.
graph attention_added

forward:
  %q = input {name="q"} : f32[2,2,4]
  %kt = input {name="kt"} : f32[2,4,3]
  %v = input {name="v"} : f32[2,3,4]
  %qs = scale %q {by=0.70710677}
  %ks = scale %kt {by=0.70710677}
  %s = matmul %qs, %ks {fused=none}
  %mask = const {data=f32[1,2,3](0, 0, -1e9, 0, 0, 0)}
  %maskb = broadcast %mask {shape=[2,2,3]}
  %sm = binary %s, %maskb {f=add}
  %p = softmax %sm {log=false}
  %y = matmul %p, %v {fused=none} @attention

result y = %y
