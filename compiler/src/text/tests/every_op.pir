# Every operation once, as a person would write it: own labels, no result types where they follow.
graph "every op"

var w: f32[4,3] param weights("model.w")
var w.ema: f32[4,3] ema copy_of("w")
var v: f32[4,3] optimizer zeros
var lr: f32[] machine value(1e-3)
var drawn: f32[8] param uniform(0.25, 7)
var drawn2: f32[8] param normal(0, 2e-2, 8)
var table: f32[2,2] buffer data(f32[2,2](0.1, -0.0, inf, 1e-45))
var "a name: with everything \" \u{7}é": bf16[2] weight_copy zeros
var outside: f32[4] param file("m.data", 4096, f16)
var acc: f32[1] accumulator zeros

forward:
  %x = input {name="x"} : f32[2,4] @x
  %ids = input {name="ids"} : i64[2]
  %img = input {name="img"} : f32[2,4,6,6]
  %flt = input {name="flt"} : f32[4,4,3,3]
  %q = input {name="q"} : f32[1,2,5,4]
  %w = var {name="w"} : f32[4,3] @w
  %lr = var {name="lr"} : f32[]
  %one = const {data=f32[](1)}
  %nan = const {data=f32[1]<0000c07f>}
  %half = const {data=f16[1]<003c>}
  %many = const {data=f32[4,3](splat 0.5)}
  %true = const {data=bool[2](1, 0)}
  %seed = const {data=i32[](-7)}
  %i = iota {shape=[2,4], axis=1}
  %b3 = const {data=f32[3](1, 2.5, 3)}
  %b4 = const {data=f32[4](1, 2, 3, 4)}
  %mm = matmul %x, %w {fused=none} @"fc1/Gemm"
  %gelu, %pre = matmul %x, %w, %b3 {fused=bias_gelu} : bf16[2,3], f32[2,3] @fc2/Gemm
  %exp = unary %mm {f=exp}
  %sum = binary %mm, %exp {f=add}
  %lt = binary %mm, %exp {f=lt}
  %sel = select %lt, %mm, %sum
  %low = cast %sel : bf16[2,3]
  %s = scale %mm {by=0.0625}
  %s2 = scale_by %lr, %mm
  %act = activate %mm {act=silu}
  %drop = dropout %act, %seed, %seed {p=0.1, stream=3}
  %resh = reshape %x {shape=[4,2]}
  %tr = transpose %x {perm=[1,0]}
  %flat = reshape %x {shape=[2,1,4]}
  %br = broadcast %flat {shape=[2,5,4]}
  %sl = slice %x {starts=[0,3], sizes=[2,2], steps=[1,-2]}
  %cat = concat %x, %x {axis=1}
  %pad = pad %x {starts=[1,0], steps=[1,1], shape=[4,4]}
  %red = reduce %x {f=sum, axes=[0,1]}
  %stop = stop_gradient %x
  %ext = extremum %x {f=max, axis=1}
  %lsum = log_sum_exp %x {axes=[1]}
  %conv = conv2d %img, %flt {stride=[2,2], pad=[1,1,1,1], dilation=[1,1], groups=1}
  %pool, %at = max_pool2d %img {kernel=[2,2], stride=[2,2], pad=[0,0,0,0]}
  %rows = gather %tr, %ids
  %soft = softmax %mm {log=true}
  %ln, %mean, %rstd = layer_norm %x, %b4, %b4 {eps=1e-5, axes=1, center=true}
  %bn, %bmean, %bvar = batch_norm %img, %b4, %b4 {eps=1e-5}
  %nll, %most, %lse = cross_entropy %mm, %ids {ignore_index=-100, label_smoothing=0.0}
  %o, %alse, %alow = attention %q, %q, %q {scale=0.5, causal=true, masked=false}
backward:
  %dext = extremum_grad %x, %ext {f=max, axes=[1], first=true}
  %dlsum = log_sum_exp_grad %x, %lsum {axes=[1]}
  %dact = activate_grad %mm, %act {act=silu}
  %dimg = conv2d_data_grad %conv, %flt {stride=[2,2], pad=[1,1,1,1], dilation=[1,1], groups=1, size=[6,6]}
  %dflt = conv2d_filter_grad %img, %conv {stride=[2,2], pad=[1,1,1,1], dilation=[1,1], groups=1, kernel=[3,3]}
  %dpool = max_pool2d_grad %pool, %at {kernel=[2,2], stride=[2,2], pad=[0,0,0,0], size=[6,6]}
  %scat = scatter_add %ids, %rows {rows=4}
  %dsoft = softmax_grad %soft, %mm {log=true}
  %dln = layer_norm_grad %x, %b4, %mean, %rstd, %x {axes=1, center=true}
  %dlnw, %dlnb = layer_norm_param_grad %x, %mean, %rstd, %x {axes=1, center=true}
  %dbn, %dbnw, %dbnb = batch_norm_grad %img, %b4, %bmean, %bvar, %bn {eps=1e-5}
  %dl = cross_entropy_grad %mm, %ids, %most, %lse, %nll {ignore_index=-100, label_smoothing=0.0}
  %dq, %dk, %dv = attention_grad %q, %q, %q, %o, %alse, %alow, %o {scale=0.5, causal=true, masked=false}
forward:
  # Regions may come in any order, and more than once.
  %late = unary %red {f=neg}
  %last = last_index %ids {rows=4}
  %running = cumsum %x {axis=1, exclusive=false, reverse=true}
  %best = top_k %x {axis=1, k=2, largest=true}
  %gates = input {name="gates"} : f32[2,1,1,3]
  %mat = input {name="mat"} : f32[1,3,3]
  %start = input {name="start"} : f32[1,1,1,3]
  %ry, %rk, %rb = recurrence %gates, %mat, %start {cell=rnn, way=forward, f=tanh, g=tanh, h=tanh, peephole=false, lengths=false}
backward:
  %dgates, %dstart = recurrence_grad %mat, %rk, %rb, %ry {cell=rnn, way=forward, f=tanh, g=tanh, h=tanh, peephole=false, lengths=false}
update:
  %ssq, %bad = grad_stats %many, %one
  %v = var {name="v"} : f32[4,3]
  %go = const {data=bool[](1)}
  %w1, %v1 = sgd_update %w, %v, %many, %lr, %one, %go {momentum=0.9, nesterov=false, weight_decay=0.0}
  %w2, %m2, %v2 = adam_update %w, %v, %v, %many, %lr, %one, %go, %one, %one {beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=1e-2, decoupled=true}
  %e = ema_update %w, %w1, %go {decay=0.999}
  %largest = reduce_int %ids {f=max, axes=[0]}

result loss = %late
result "out logits" = %mm
update w = %w1
update v = %v1
update w.ema = %e
