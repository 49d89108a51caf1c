//! Executes block code over tiles.

use super::geom::{Strides, Tile};
use super::io::Port;
use super::lower::{Class, Code, Dst, Op, Run, Src, Style};
use super::ops;
use super::prepare::Inst;

/// Registers of the thread that runs, laid out in its scratch memory.
#[derive(Clone, Copy)]
pub struct Regs {
    elem: *mut f32,
    elem_stride: usize,
    row: *mut f32,
    row_stride: usize,
    scalar: *mut f32,
    /// Partial results of one chunk, one row register per reduction; one more as scratch.
    pub acc: *mut f32,
}

/// Distance between registers: whole cache lines, and an odd number of them, or a dozen registers
/// of 4 KiB would share the sets of a first-level cache.
fn line(lanes: usize) -> usize {
    let lines = lanes.div_ceil(16);
    (lines | 1) * 16
}

/// f32 words of scratch memory that an instance needs.
pub fn scratch_words(inst: &Inst, code: &Code) -> usize {
    let reductions = code.passes.iter().map(|p| p.reductions.len()).max().unwrap_or(0);
    code.n_elem * line(inst.elem_lanes())
        + (code.n_row + reductions + 1) * line(inst.row_lanes())
        + line(code.n_scalar)
}

/// f32 words of the row registers of one group.
pub fn row_words(inst: &Inst, code: &Code) -> usize {
    code.n_row * line(inst.row_lanes())
}

/// f32 words of one partial result of all reductions of a pass.
pub fn partial_words(inst: &Inst, reductions: usize) -> usize {
    reductions * line(inst.row_lanes())
}

impl Regs {
    /// # Safety
    /// `scratch` is writable for [`scratch_words`] words and aligned to 64 bytes; so is `rows`, if
    /// given, for [`row_words`].
    pub unsafe fn new(inst: &Inst, code: &Code, scratch: *mut f32, rows: Option<*mut f32>) -> Regs {
        let (elem_stride, row_stride) = (line(inst.elem_lanes()), line(inst.row_lanes()));
        // SAFETY: the sum of the parts is `scratch_words`.
        unsafe {
            let row = scratch.add(code.n_elem * elem_stride);
            let scalar = row.add(code.n_row * row_stride);
            let acc = scalar.add(line(code.n_scalar));
            for &(slot, x) in &code.consts {
                *scalar.add(slot as usize) = x;
            }
            Regs { elem: scratch, elem_stride, row: rows.unwrap_or(row), row_stride, scalar, acc }
        }
    }

    fn row(&self, r: u16) -> *mut f32 {
        self.row.wrapping_add(r as usize * self.row_stride)
    }

    fn partial(&self, base: *mut f32, k: usize) -> *mut f32 {
        base.wrapping_add(k * self.row_stride)
    }
}

/// Asks for a cache line, to arrive in the second-level cache.
#[inline(always)]
fn prefetch(p: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Lanes, or one value for all of them.
#[derive(Clone, Copy)]
enum Operand<'a> {
    V(&'a [f32]),
    S(f32),
}

impl<'a> Operand<'a> {
    fn lanes(self) -> &'a [f32] {
        match self {
            Operand::V(v) => v,
            Operand::S(_) => unreachable!("lowering spreads this operand"),
        }
    }
}

/// An instance with its code; every method is called with registers of the calling thread.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    pub inst: &'a Inst,
    pub code: &'a Code,
    pub regs: Regs,
    /// An epilogue's tile of sums: what port 0 loads.
    pub sums: Option<*mut f32>,
    /// The output port that is stored over the sums, if any.
    pub over_sums: Option<u16>,
}

impl Machine<'_> {
    /// First kept index and number of kept indices of a tile.
    fn rows_of(&self, tile: Tile) -> (usize, usize) {
        if self.inst.columns { (tile.i0, tile.n) } else { (tile.o0, tile.on) }
    }

    fn in_place(&self, port: &Port, tile: Tile) -> *mut f32 {
        port.at(self.inst.space.offset(&port.strides, tile)).cast()
    }

    /// # Safety
    /// The register holds what the code put there; `lanes` and the tile are those of the
    /// instruction.
    unsafe fn operand<'b>(&self, src: Src, tile: Tile, lanes: usize, at: Class) -> Operand<'b> {
        let r = &self.regs;
        // SAFETY: registers hold at least the lanes of a full tile of their class.
        unsafe {
            let v = |p: *const f32| Operand::V(std::slice::from_raw_parts(p, lanes));
            match src {
                Src::None => Operand::S(0.0),
                Src::Elem(e) => v(r.elem.add(e as usize * r.elem_stride)),
                Src::Row(x) => v(r.row(x)),
                Src::RowScalar(x) => Operand::S(*r.row(x)),
                Src::Scalar(s) if at == Class::Scalar => v(r.scalar.add(s as usize)),
                Src::Scalar(s) => Operand::S(*r.scalar.add(s as usize)),
                Src::In(p) => v(match self.sums {
                    Some(sums) if p == 0 => sums,
                    _ => self.in_place(&self.inst.inputs[p as usize], tile),
                }),
                Src::Out(p) => v(self.in_place(&self.inst.outputs[p as usize], tile)),
            }
        }
    }

    /// Runs instructions over a tile.
    ///
    /// # Safety
    /// The instance's tensors are live, and no other thread touches what this tile writes.
    pub unsafe fn exec(&self, code: &[Op], tile: Tile) {
        let (r0, rn) = self.rows_of(tile);
        for op in code {
            let r = &self.regs;
            let (p, lanes, class) = match op.dst {
                Dst::Elem(e) => {
                    (r.elem.wrapping_add(e as usize * r.elem_stride), tile.lanes(), Class::Elem)
                }
                Dst::Out(o) => {
                    let p = self.in_place(&self.inst.outputs[o as usize], tile);
                    (p, tile.lanes(), Class::Elem)
                }
                Dst::Row(x) => (r.row(x), rn, Class::Row),
                Dst::Scalar(s) => (r.scalar.wrapping_add(s as usize), 1, Class::Scalar),
            };
            // SAFETY: the register has room for the lanes, and allocation keeps it apart from the
            // operands; an output computed in place overlaps no input.
            unsafe {
                let dst = std::slice::from_raw_parts_mut(p, lanes);
                let get = |s: Src| self.operand(s, tile, lanes, class);
                match op.run {
                    Run::Unary(f) => f(get(op.a).lanes(), dst),
                    Run::Binary(f) => match (get(op.a), get(op.b)) {
                        (Operand::V(a), Operand::V(b)) => (f.vv)(a, b, dst),
                        (Operand::V(a), Operand::S(b)) => (f.vs)(a, b, dst),
                        (Operand::S(a), Operand::V(b)) => (f.sv)(a, b, dst),
                        (Operand::S(a), Operand::S(b)) => {
                            dst.fill(a);
                            let mut one = [0.0];
                            (f.vs)(&[a], b, &mut one);
                            dst.fill(one[0]);
                        }
                    },
                    Run::Select => {
                        let c = get(op.a).lanes();
                        match (get(op.b), get(op.c)) {
                            (Operand::V(a), Operand::V(b)) => ops::select_vv(c, a, b, dst),
                            (Operand::V(a), Operand::S(b)) => ops::select_vs(c, a, b, dst),
                            (Operand::S(a), Operand::V(b)) => ops::select_sv(c, a, b, dst),
                            (Operand::S(a), Operand::S(b)) => ops::select_ss(c, a, b, dst),
                        }
                    }
                    Run::Load(0) if self.sums.is_some() => {
                        let sums = self.sums.expect("just checked");
                        dst.copy_from_slice(std::slice::from_raw_parts(sums, lanes));
                    }
                    Run::Load(port) => {
                        let port = &self.inst.inputs[port as usize];
                        match class {
                            Class::Elem => port.load(&self.inst.space, tile, dst),
                            Class::Row if !self.inst.columns => {
                                port.load_outer(&self.inst.space, r0, dst);
                            }
                            Class::Row => {
                                let row = Tile { o0: 0, on: 1, i0: r0, n: rn };
                                port.load(&self.inst.space, row, dst);
                            }
                            Class::Scalar => dst[0] = port.get(port.strides.base),
                        }
                    }
                    Run::Index(k) => {
                        self.coordinates(&self.inst.index[k as usize], class, tile, dst)
                    }
                    Run::Uniform { stream } => {
                        let (seed, step) = (get(op.a), get(op.b));
                        self.uniform(seed, step, stream, tile, dst);
                    }
                    Run::Spread => self.spread(op.a, class, tile, dst),
                    Run::Reduce(kind) => {
                        let whole = self.operand(op.a, tile, tile.lanes(), Class::Elem);
                        ops::reduce_rows(kind, whole.lanes(), tile.n, dst);
                    }
                }
            }
        }
    }

    fn coordinates(&self, s: &Strides, class: Class, tile: Tile, dst: &mut [f32]) {
        let mut put = |lane: usize, off: i64, stride: i64, count: usize| {
            for (i, d) in dst[lane..lane + count].iter_mut().enumerate() {
                *d = f32::from_bits((off + stride * i as i64) as u32);
            }
        };
        let space = &self.inst.space;
        let (r0, rn) = self.rows_of(tile);
        match class {
            Class::Elem => space.runs(s, tile, put),
            Class::Row if !self.inst.columns => space.outer_runs(s, r0, rn, put),
            Class::Row => space.runs(s, Tile { o0: 0, on: 1, i0: r0, n: rn }, put),
            Class::Scalar => put(0, s.base, 0, 1),
        }
    }

    fn uniform(&self, seed: Operand, step: Operand, stream: u32, tile: Tile, dst: &mut [f32]) {
        let word = |x: Operand, lane: usize| match x {
            Operand::S(x) => x.to_bits(),
            Operand::V(v) => v[lane].to_bits(),
        };
        let fixed = matches!((seed, step), (Operand::S(_), Operand::S(_)));
        self.inst.space.runs(&self.inst.linear, tile, |lane, off, stride, count| {
            if fixed {
                let key = [word(seed, 0), word(step, 0)];
                return ops::uniform(off as u64, stride, stream, key, &mut dst[lane..lane + count]);
            }
            for i in lane..lane + count {
                let at = (off + stride * (i - lane) as i64) as u64;
                let key = [word(seed, i), word(step, i)];
                ops::uniform(at, 0, stream, key, &mut dst[i..=i]);
            }
        });
    }

    /// # Safety
    /// As [`Machine::exec`].
    unsafe fn spread(&self, src: Src, class: Class, tile: Tile, dst: &mut [f32]) {
        let (_, rn) = self.rows_of(tile);
        // SAFETY: as in `exec`; a row register holds `rn` lanes.
        match unsafe { self.operand(src, tile, rn, Class::Elem) } {
            Operand::S(x) => dst.fill(x),
            Operand::V(rows) if class == Class::Row => dst.copy_from_slice(rows),
            Operand::V(rows) if self.inst.columns => {
                dst.chunks_exact_mut(tile.n).for_each(|d| d.copy_from_slice(rows));
            }
            Operand::V(rows) => {
                for (d, &x) in dst.chunks_exact_mut(tile.n).zip(rows) {
                    d.fill(x);
                }
            }
        }
    }

    unsafe fn store(&self, tile: Tile) {
        for s in &self.code.stores {
            // SAFETY: the caller's contract.
            unsafe {
                let x = self.operand(s.src, tile, tile.lanes(), Class::Elem).lanes();
                if let Some(sums) = self.sums
                    && self.over_sums == Some(s.port)
                {
                    std::slice::from_raw_parts_mut(sums, x.len()).copy_from_slice(x);
                    continue;
                }
                self.inst.outputs[s.port as usize].store(&self.inst.space, tile, x);
            }
        }
    }

    unsafe fn store_rows(&self, tile: Tile) {
        let (r0, rn) = self.rows_of(tile);
        for s in &self.code.row_stores {
            let port = &self.inst.outputs[s.port as usize];
            // SAFETY: the caller's contract.
            unsafe {
                let x = self.operand(s.src, tile, rn, Class::Row).lanes();
                if self.inst.columns {
                    port.store(&self.inst.space, Tile { o0: 0, on: 1, i0: r0, n: rn }, x);
                } else {
                    port.store_outer(&self.inst.space, r0, x);
                }
            }
        }
    }

    /// Computes the values that are the same everywhere.
    ///
    /// # Safety
    /// As [`Machine::exec`].
    pub unsafe fn scalars(&self) {
        // SAFETY: the caller's contract.
        unsafe { self.exec(&self.code.scalars, Tile { o0: 0, on: 1, i0: 0, n: 1 }) };
    }

    /// Runs tiles or groups `from..to`.
    ///
    /// # Safety
    /// As [`Machine::exec`], for all of them.
    pub unsafe fn run(&self, from: usize, to: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            self.scalars();
            for g in from..to {
                match self.inst.style {
                    Style::Whole => self.whole(g, g + 1 < to),
                    Style::Passes => self.group(g),
                }
            }
        }
    }

    /// Runs the program over one tile.
    ///
    /// # Safety
    /// As [`Machine::exec`].
    pub unsafe fn once(&self, tile: Tile) {
        // SAFETY: the caller's contract.
        unsafe {
            self.exec(&self.code.body, tile);
            self.store(tile);
        }
    }

    fn whole_tile(&self, g: usize) -> Tile {
        let (o, i) = self.inst.tile;
        let space = &self.inst.space;
        let across = space.inner_len.div_ceil(i);
        let (o0, i0) = (g / across * o, g % across * i);
        Tile { o0, on: o.min(space.outer_len - o0), i0, n: i.min(space.inner_len - i0) }
    }

    /// `more`: the caller runs tile `g + 1` next.
    unsafe fn whole(&self, g: usize, more: bool) {
        let tile = self.whole_tile(g);
        let body = &self.code.body;
        // SAFETY: the caller's contract.
        unsafe {
            if more && !self.code.ahead.is_empty() {
                // A few lines of the next tile's inputs with every instruction: memory works while
                // the lanes compute. Hardware stops fetching ahead at the end of a page.
                let next = self.whole_tile(g + 1);
                let lines = (next.lanes() * 4).div_ceil(64);
                let each = (lines * self.code.ahead.len()).div_ceil(body.len());
                for (k, op) in body.iter().enumerate() {
                    for at in k * each..(k + 1) * each {
                        let Some(&port) = self.code.ahead.get(at / lines) else { break };
                        let base = self.in_place(&self.inst.inputs[port as usize], next);
                        prefetch(base.wrapping_add(at % lines * 16));
                    }
                    self.exec(std::slice::from_ref(op), tile);
                }
            } else {
                self.exec(body, tile);
            }
            self.store(tile);
            self.store_rows(tile);
        }
    }

    unsafe fn group(&self, g: usize) {
        // SAFETY: the caller's contract; registers are this thread's own.
        unsafe {
            self.begin(g);
            for p in 0..self.code.passes.len() {
                self.reset(p);
                for chunk in 0..self.inst.chunks {
                    self.pass(p, g, chunk, self.regs.acc);
                    self.fold(p, g, self.regs.acc);
                }
                self.after(p, g);
            }
            for chunk in 0..self.inst.chunks {
                self.last(g, chunk);
            }
            self.store_rows(self.tile(g, 0, 1));
        }
    }

    /// The tile of group `g` at reduced index `at`, `len` long.
    fn tile(&self, g: usize, at: usize, len: usize) -> Tile {
        if self.inst.columns {
            let i0 = g * self.inst.tile.1;
            let n = self.inst.tile.1.min(self.inst.space.inner_len - i0);
            Tile { o0: at, on: len, i0, n }
        } else {
            Tile { o0: g, on: 1, i0: at, n: len }
        }
    }

    fn tiles(&self, g: usize, chunk: usize) -> impl Iterator<Item = Tile> {
        let (len, step) = if self.inst.columns {
            (self.inst.space.outer_len, self.inst.tile.0)
        } else {
            (self.inst.space.inner_len, self.inst.tile.1)
        };
        let from = chunk * self.inst.chunk;
        let to = (from + self.inst.chunk).min(len);
        (from..to).step_by(step).map(move |at| self.tile(g, at, step.min(to - at)))
    }

    /// Row instructions that need no pass.
    ///
    /// # Safety
    /// As [`Machine::exec`]; the row registers belong to group `g`.
    pub unsafe fn begin(&self, g: usize) {
        // SAFETY: the caller's contract.
        unsafe { self.exec(&self.code.rows, self.tile(g, 0, 1)) };
    }

    /// Sets the results of pass `p` to the identities of their reductions.
    ///
    /// # Safety
    /// The row registers are this thread's.
    pub unsafe fn reset(&self, p: usize) {
        for red in &self.code.passes[p].reductions {
            // SAFETY: a row register has this many lanes.
            unsafe {
                std::slice::from_raw_parts_mut(self.regs.row(red.row), self.inst.row_lanes())
                    .fill(ops::identity(red.op));
            }
        }
    }

    /// Combines a chunk's partial results into the row registers.
    ///
    /// # Safety
    /// `partial` holds what [`Machine::pass`] wrote.
    pub unsafe fn fold(&self, p: usize, g: usize, partial: *mut f32) {
        let (_, rn) = self.rows_of(self.tile(g, 0, 1));
        for (k, red) in self.code.passes[p].reductions.iter().enumerate() {
            // SAFETY: both have a row's lanes and are apart.
            unsafe {
                let row = std::slice::from_raw_parts_mut(self.regs.row(red.row), rn);
                let part = std::slice::from_raw_parts(self.regs.partial(partial, k), rn);
                ops::combine(red.op, row, part);
            }
        }
    }

    /// Row instructions that the results of pass `p` make possible.
    ///
    /// # Safety
    /// As [`Machine::exec`].
    pub unsafe fn after(&self, p: usize, g: usize) {
        // SAFETY: the caller's contract.
        unsafe { self.exec(&self.code.passes[p].row, self.tile(g, 0, 1)) };
    }

    /// Reduces one chunk of group `g` into `partial`.
    ///
    /// # Safety
    /// As [`Machine::exec`]; `partial` has room for every reduction of the pass.
    pub unsafe fn pass(&self, p: usize, g: usize, chunk: usize, partial: *mut f32) {
        let pass = &self.code.passes[p];
        let (_, rn) = self.rows_of(self.tile(g, 0, 1));
        // SAFETY: partial registers have a row's lanes; the scratch one is the last.
        unsafe {
            let slot = |k: usize| std::slice::from_raw_parts_mut(self.regs.partial(partial, k), rn);
            for (k, red) in pass.reductions.iter().enumerate() {
                slot(k).fill(ops::identity(red.op));
            }
            for tile in self.tiles(g, chunk) {
                self.exec(&pass.elem, tile);
                for (k, red) in pass.reductions.iter().enumerate() {
                    let x = self.operand(red.src, tile, tile.lanes(), Class::Elem).lanes();
                    if !self.inst.columns {
                        let mut one = [0.0];
                        ops::reduce_rows(red.op, x, tile.n, &mut one);
                        ops::combine(red.op, slot(k), &one);
                    } else if tile.on == 1 {
                        ops::combine(red.op, slot(k), x);
                    } else {
                        // The tile's own sum first, which bounds how many terms a running sum sees.
                        let mut rows = x.chunks_exact(rn);
                        let sum = self.regs.partial(self.regs.acc, pass.reductions.len());
                        let sum = std::slice::from_raw_parts_mut(sum, rn);
                        sum.copy_from_slice(rows.next().expect("a tile has a row"));
                        rows.for_each(|row| ops::combine(red.op, sum, row));
                        ops::combine(red.op, slot(k), sum);
                    }
                }
            }
        }
    }

    /// The last pass over one chunk: element outputs.
    ///
    /// # Safety
    /// As [`Machine::exec`].
    pub unsafe fn last(&self, g: usize, chunk: usize) {
        if self.code.body.is_empty() && self.code.stores.is_empty() {
            return;
        }
        for tile in self.tiles(g, chunk) {
            // SAFETY: the caller's contract.
            unsafe {
                self.exec(&self.code.body, tile);
                self.store(tile);
            }
        }
    }

    /// Row outputs of group `g`.
    ///
    /// # Safety
    /// As [`Machine::exec`].
    pub unsafe fn finish(&self, g: usize) {
        // SAFETY: the caller's contract.
        unsafe { self.store_rows(self.tile(g, 0, 1)) };
    }
}
