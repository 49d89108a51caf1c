//! Text to graph. A line is a statement; an error ends its line and reading goes on, so one run
//! reports all of them. Values of a faulty line are known to be unknown, and cause no errors
//! downstream.

use super::lex::{Spanned, Token, lex};
use super::print::{dtype_attr, shape_attr};
use super::{REGIONS, ROLES, repeats_type};
use crate::diagnostic::{Diagnostic, Diagnostics, Place, Result};
use crate::ir::{
    Attr, AttrMap, ConstData, Graph, Region, Result_, Shape, TensorType, ValueId, Var, VarInit,
};
use crate::ops::Op;
use precast_plan::DType;
use rustc_hash::FxHashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// More elements than any tensor has; keeps products of extents within 64 bits.
const MAX_ELEMENTS: u64 = 1 << 44;
/// A splat literal allocates what it says.
const MAX_SPLAT_BYTES: u64 = 1 << 28;

/// Reads a graph from text; `path` labels errors.
///
/// # Errors
/// Everything that is wrong with the text: `P0301` syntax, `P0302` unknown operation, `P0303`
/// attributes, `P0304` values, `P0305` types, `P0306` sizes, `P0307` variables.
pub fn parse(path: impl AsRef<Path>, text: &str) -> Result<Graph> {
    let mut parser = Parser {
        path: path.as_ref().into(),
        text,
        graph: Graph::default(),
        named: false,
        region: None,
        values: FxHashMap::default(),
        errors: vec![],
    };
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let end = at + line.trim_end_matches(['\n', '\r']).len();
        match lex(text, at..end) {
            Ok(tokens) if tokens.is_empty() => {}
            Ok(tokens) => {
                let mut cx = Line { tokens: &tokens, at: 0, end };
                if let Err(fault) = parser.statement(&mut cx) {
                    parser.poison(&tokens);
                    parser.report(fault);
                }
            }
            Err((message, span)) => {
                // Without tokens, the labels this line defines are found by their sign.
                let label = text[at..end].trim_start().strip_prefix('%').unwrap_or("");
                let label: String = label
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || "_.".contains(*c))
                    .collect();
                if !label.is_empty() {
                    parser.values.entry(label).or_insert(None);
                }
                parser.report(Fault::new("P0301", span, message));
            }
        }
        at += line.len();
    }
    if !parser.named {
        let message = "a graph begins with `graph NAME`";
        parser.report(Fault::new("P0301", 0..0, message));
    }
    if parser.errors.is_empty() { Ok(parser.graph) } else { Err(Diagnostics(parser.errors)) }
}

/// An error before it has its text. `silent` ones follow from one already reported.
struct Fault {
    code: &'static str,
    span: Range<usize>,
    message: String,
    help: Option<String>,
    silent: bool,
}

type Parsed<T> = std::result::Result<T, Fault>;

impl Fault {
    fn new(code: &'static str, span: Range<usize>, message: impl Into<String>) -> Fault {
        Fault { code, span, message: message.into(), help: None, silent: false }
    }
    fn help(mut self, help: impl Into<String>) -> Fault {
        self.help = Some(help.into());
        self
    }
}

/// The tokens of one statement and how far it has been read.
struct Line<'a> {
    tokens: &'a [Spanned],
    at: usize,
    end: usize,
}

impl Line<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(t, _)| t)
    }

    /// Where the next token is, or the end of the line.
    fn span(&self) -> Range<usize> {
        self.tokens.get(self.at).map_or(self.end..self.end, |(_, s)| s.clone())
    }

    fn expected<T>(&self, what: &str) -> Parsed<T> {
        let found = self.peek().map_or("the end of the line".into(), Token::describe);
        Err(Fault::new("P0301", self.span(), format!("expected {what}, found {found}")))
    }

    fn eat(&mut self, c: char) -> bool {
        let here = self.peek() == Some(&Token::Punct(c));
        self.at += usize::from(here);
        here
    }

    fn punct(&mut self, c: char) -> Parsed<()> {
        if self.eat(c) { Ok(()) } else { self.expected(&format!("`{c}`")) }
    }

    fn take<T>(&mut self, what: &str, get: impl Fn(&Token) -> Option<T>) -> Parsed<T> {
        match self.peek().and_then(get) {
            Some(x) => {
                self.at += 1;
                Ok(x)
            }
            None => self.expected(what),
        }
    }

    fn word(&mut self, what: &str) -> Parsed<String> {
        self.take(what, |t| if let Token::Word(w) = t { Some(w.clone()) } else { None })
    }

    fn name(&mut self) -> Parsed<String> {
        self.take("a name", |t| match t {
            Token::Word(w) | Token::Str(w) => Some(w.clone()),
            _ => None,
        })
    }

    fn string(&mut self) -> Parsed<String> {
        self.take("a string", |t| if let Token::Str(s) = t { Some(s.clone()) } else { None })
    }

    fn label(&mut self) -> Parsed<String> {
        self.take("a value", |t| if let Token::Value(v) = t { Some(v.clone()) } else { None })
    }

    fn int(&mut self) -> Parsed<i64> {
        self.take("an integer", |t| if let Token::Int(x) = t { Some(*x) } else { None })
    }

    fn real(&mut self) -> Parsed<f64> {
        self.take("a number", |t| match t {
            Token::Int(x) => Some(*x as f64),
            Token::Real(x) => Some(*x),
            Token::Word(w) => special(w),
            _ => None,
        })
    }

    fn offset(&mut self) -> Parsed<u64> {
        let span = self.span();
        let x = self.int()?;
        u64::try_from(x).map_err(|_| Fault::new("P0301", span, "an offset is not negative"))
    }

    fn format(&mut self) -> Parsed<DType> {
        let span = self.span();
        self.word("a format")?.parse().map_err(|e: String| Fault::new("P0301", span, e))
    }

    fn stream(&mut self) -> Parsed<u32> {
        let span = self.span();
        let x = self.int()?;
        u32::try_from(x).map_err(|_| Fault::new("P0301", span, "a stream is a 32-bit number"))
    }

    /// `ITEM, ITEM, … CLOSE`, the opening bracket already read.
    fn list<T>(
        &mut self,
        close: char,
        mut item: impl FnMut(&mut Self) -> Parsed<T>,
    ) -> Parsed<Vec<T>> {
        let mut items = vec![];
        if self.eat(close) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.eat(close) {
                return Ok(items);
            }
            self.punct(',')?;
        }
    }

    fn finish(&self) -> Parsed<()> {
        if self.at == self.tokens.len() { Ok(()) } else { self.expected("the end of the line") }
    }

    fn ty(&mut self) -> Parsed<TensorType> {
        let span = self.span();
        let word = self.word("a type, such as `f32[2,3]`")?;
        let dtype: DType = word.parse().map_err(|_| {
            Fault::new("P0301", span.clone(), format!("unknown element format `{word}`"))
                .help(suggest(&word, DType::ALL.iter().map(|d| d.name())))
        })?;
        self.punct('[')?;
        let dims = self.list(']', |l| {
            let span = l.span();
            let x = l.int()?;
            usize::try_from(x).map_err(|_| Fault::new("P0301", span, "an extent is not negative"))
        })?;
        let ty = TensorType::new(dtype, dims);
        if too_large(&ty.shape) {
            let span = span.start..self.tokens[self.at - 1].1.end;
            return Err(Fault::new("P0306", span, "the tensor is larger than any memory"));
        }
        Ok(ty)
    }

    fn attr(&mut self) -> Parsed<Attr> {
        match self.peek() {
            Some(Token::Int(x)) => {
                let x = *x;
                self.at += 1;
                Ok(Attr::Int(x))
            }
            Some(Token::Real(_)) => self.real().map(Attr::Real),
            Some(Token::Str(_)) => self.string().map(Attr::Str),
            Some(Token::Punct('[')) => {
                let start = self.span();
                self.at += 1;
                let v = self.list(']', Line::int)?;
                let product =
                    v.iter().try_fold(1u64, |n, x| n.checked_mul(x.unsigned_abs().max(1)));
                if product.is_none_or(|n| n > MAX_ELEMENTS) {
                    return Err(Fault::new(
                        "P0306",
                        start,
                        "these extents are larger than any memory",
                    ));
                }
                Ok(Attr::Ints(v))
            }
            Some(Token::Word(w)) => {
                if self.tokens.get(self.at + 1).is_some_and(|(t, _)| *t == Token::Punct('[')) {
                    return self.literal().map(Attr::Tensor);
                }
                let attr = match (w.as_str(), special(w)) {
                    (_, Some(x)) => Attr::Real(x),
                    ("true", _) => Attr::Bool(true),
                    ("false", _) => Attr::Bool(false),
                    (w, _) => Attr::Word(w.into()),
                };
                self.at += 1;
                Ok(attr)
            }
            _ => self.expected("an attribute's value"),
        }
    }

    /// `f32[2](1.0, 2.0)`, `f32[64](splat 0.5)` or `f32[2]<bytes>`.
    fn literal(&mut self) -> Parsed<ConstData> {
        let ty = self.ty()?;
        let span = self.span();
        let n = ty.shape.elements();
        let data = |bytes: Vec<u8>| ConstData {
            dtype: ty.dtype,
            shape: ty.shape.clone(),
            bytes: bytes.into(),
        };
        if let Some(Token::Hex(bytes)) = self.peek() {
            let bytes = bytes.clone();
            if bytes.len() as u64 != n as u64 * ty.dtype.size() as u64 {
                let message = format!("{ty} takes {} bytes, not {}", ty.bytes(), bytes.len());
                return Err(Fault::new("P0306", span, message));
            }
            if ty.dtype == DType::Bool && bytes.iter().any(|b| *b > 1) {
                return Err(Fault::new("P0306", span, "a bool is 00 or 01"));
            }
            self.at += 1;
            return Ok(data(bytes));
        }
        self.punct('(')?;
        if self.peek() == Some(&Token::Word("splat".into())) {
            self.at += 1;
            let item = self.element(ty.dtype)?;
            if n as u64 * item.len() as u64 > MAX_SPLAT_BYTES {
                return Err(Fault::new("P0306", span, "the literal is too large"));
            }
            self.punct(')')?;
            return Ok(data(item.repeat(n)));
        }
        let items = self.list(')', |l| l.element(ty.dtype))?;
        if items.len() != n {
            let message = format!("{ty} takes {n} elements, not {}", items.len());
            return Err(Fault::new("P0306", span, message));
        }
        Ok(data(items.concat()))
    }

    /// One element in little-endian bytes.
    fn element(&mut self, dtype: DType) -> Parsed<Vec<u8>> {
        let span = self.span();
        if dtype == DType::F32 {
            // Rounds twice; the printer writes decimals only where that gives the same bits.
            return Ok((self.real()? as f32).to_le_bytes().into());
        }
        let outside = |_| Fault::new("P0306", span.clone(), format!("does not fit {dtype}"));
        let x = match self.peek() {
            Some(Token::Int(_)) => self.int()?,
            _ if dtype.is_real() => {
                let message = format!("elements of {dtype} are written as bytes: `<…>`");
                return Err(Fault::new("P0301", span, message));
            }
            _ => return self.expected("an integer"),
        };
        Ok(match dtype {
            DType::I64 => x.to_le_bytes().into(),
            DType::I32 => i32::try_from(x).map_err(outside)?.to_le_bytes().into(),
            DType::U8 => vec![u8::try_from(x).map_err(outside)?],
            DType::Bool if x == 0 || x == 1 => vec![x as u8],
            DType::Bool => return Err(Fault::new("P0306", span, "a bool is 0 or 1")),
            _ => {
                let message = format!("elements of {dtype} are written as bytes: `<…>`");
                return Err(Fault::new("P0301", span, message));
            }
        })
    }
}

struct Parser<'t> {
    path: PathBuf,
    text: &'t str,
    graph: Graph,
    named: bool,
    region: Option<Region>,
    /// Label → value; `None` where the line that defines it is faulty.
    values: FxHashMap<String, Option<ValueId>>,
    errors: Vec<Diagnostic>,
}

impl Parser<'_> {
    fn report(&mut self, fault: Fault) {
        if fault.silent {
            return;
        }
        let place = Place::Span {
            path: self.path.clone(),
            text: self.text.into(),
            span: fault.span,
            label: String::new(),
        };
        let mut d = Diagnostic::error(fault.code, fault.message).at(place);
        d.help = fault.help.filter(|h| !h.is_empty());
        self.errors.push(d);
    }

    /// Marks the labels a faulty line defines.
    fn poison(&mut self, tokens: &[Spanned]) {
        for (token, _) in tokens {
            match token {
                Token::Value(label) => drop(self.values.entry(label.clone()).or_insert(None)),
                Token::Punct(',') => {}
                _ => break,
            }
        }
    }

    fn statement(&mut self, l: &mut Line) -> Parsed<()> {
        if let Some(Token::Value(_)) = l.peek() {
            return self.node(l);
        }
        let span = l.span();
        let word = l.word("a statement")?;
        if let Some(region) = REGIONS.iter().find(|r| r.name() == word)
            && l.eat(':')
        {
            self.region = Some(*region);
            return l.finish();
        }
        match word.as_str() {
            "graph" => {
                let name = l.name()?;
                if self.named {
                    return Err(Fault::new("P0301", span, "a text holds one graph"));
                }
                self.named = true;
                self.graph.name = name;
            }
            "var" => self.var(l)?,
            "result" | "update" => {
                let name = l.name()?;
                l.punct('=')?;
                let value = self.value(l)?;
                let result = Result_ { name, value };
                if word == "result" {
                    self.graph.results.push(result);
                } else {
                    self.graph.updates.push(result);
                }
            }
            _ => {
                let statements = ["graph", "var", "result", "forward", "backward", "update"];
                let help = suggest(&word, statements.into_iter());
                return Err(
                    Fault::new("P0301", span, format!("unknown statement `{word}`")).help(help)
                );
            }
        }
        l.finish()
    }

    fn var(&mut self, l: &mut Line) -> Parsed<()> {
        let at = l.span();
        let name = l.name()?;
        l.punct(':')?;
        let ty = l.ty()?;
        let span = l.span();
        let word = l.word("the variable's role")?;
        let Some((_, role)) = ROLES.iter().find(|(w, _)| *w == word) else {
            let help = suggest(&word, ROLES.iter().map(|(w, _)| *w));
            return Err(Fault::new("P0307", span, format!("unknown role `{word}`")).help(help));
        };
        let span = l.span();
        let word = l.word("how the variable begins")?;
        if word != "zeros" {
            l.punct('(')?;
        }
        let init = match word.as_str() {
            "zeros" => VarInit::Zeros,
            "value" => VarInit::Value(l.real()?),
            "weights" => VarInit::Weights(l.string()?),
            "uniform" => {
                let bound = l.real()?;
                l.punct(',')?;
                VarInit::Uniform { bound, stream: l.stream()? }
            }
            "normal" => {
                let mean = l.real()?;
                l.punct(',')?;
                let std = l.real()?;
                l.punct(',')?;
                VarInit::Normal { mean, std, stream: l.stream()? }
            }
            "data" => VarInit::Data(l.literal()?),
            "copy_of" => VarInit::CopyOf(l.string()?),
            "file" => {
                let path = l.string()?;
                l.punct(',')?;
                let offset = l.offset()?;
                l.punct(',')?;
                VarInit::File { path, offset, dtype: l.format()? }
            }
            _ => {
                let inits =
                    ["zeros", "value", "weights", "uniform", "normal", "data", "copy_of", "file"];
                let help = suggest(&word, inits.into_iter());
                let message = format!("unknown beginning `{word}`");
                return Err(Fault::new("P0307", span, message).help(help));
            }
        };
        if word != "zeros" {
            l.punct(')')?;
        }
        if let VarInit::Data(data) = &init
            && data.ty() != ty
        {
            let message = format!("the variable is {ty}, its data {}", data.ty());
            return Err(Fault::new("P0305", span, message));
        }
        if self.graph.vars.contains_key(&name) {
            return Err(Fault::new("P0307", at, format!("variable `{name}` exists already")));
        }
        self.graph.vars.insert(name, Var { ty, role: *role, init });
        Ok(())
    }

    /// A use of a value.
    fn value(&self, l: &mut Line) -> Parsed<ValueId> {
        let span = l.span();
        let label = l.label()?;
        match self.values.get(&label) {
            Some(Some(v)) => Ok(*v),
            Some(None) => Err(Fault { silent: true, ..Fault::new("P0304", span, "") }),
            None => {
                let message = format!("`%{label}` is not defined above");
                let mut known: Vec<&str> = self.values.keys().map(String::as_str).collect();
                known.sort_unstable();
                let fault = Fault::new("P0304", span, message);
                // Numbers are all near each other; only words are worth a guess.
                let word = label.bytes().any(|c| c.is_ascii_alphabetic());
                Err(if word { fault.help(suggest(&label, known.into_iter())) } else { fault })
            }
        }
    }

    fn node(&mut self, l: &mut Line) -> Parsed<()> {
        let line = l.span();
        let mut labels = vec![];
        loop {
            let span = l.span();
            let label = l.label()?;
            if matches!(self.values.get(&label), Some(Some(_))) || labels.contains(&label) {
                let message = format!("`%{label}` is defined already");
                return Err(Fault::new("P0304", span, message));
            }
            labels.push(label);
            if !l.eat(',') {
                break;
            }
        }
        l.punct('=')?;
        let Some(region) = self.region else {
            let message = "a node stands under `forward:`, `backward:` or `update:`";
            return Err(Fault::new("P0301", line, message));
        };
        let op_span = l.span();
        let mnemonic = l.word("an operation")?;
        if !Op::NAMES.contains(&mnemonic.as_str()) {
            let help = suggest(&mnemonic, Op::NAMES.iter().copied());
            let message = format!("unknown operation `{mnemonic}`");
            return Err(Fault::new("P0302", op_span, message).help(help));
        }
        let mut inputs = vec![];
        if let Some(Token::Value(_)) = l.peek() {
            inputs.push(self.value(l)?);
            while l.eat(',') {
                inputs.push(self.value(l)?);
            }
        }
        let mut attrs = AttrMap::default();
        if l.eat('{') {
            l.list('}', |l| {
                let span = l.span();
                let name = l.word("an attribute")?;
                l.punct('=')?;
                let value = l.attr()?;
                match attrs.0.insert(name, value) {
                    None => Ok(()),
                    Some(_) => Err(Fault::new("P0303", span, "the attribute is given twice")),
                }
            })?;
        }
        let mut stated = None;
        if l.eat(':') {
            let mut types = vec![l.ty()?];
            while l.eat(',') {
                types.push(l.ty()?);
            }
            stated = Some(types);
        }
        let name = if l.eat('@') { l.name()? } else { labels[0].clone() };
        l.finish()?;

        if repeats_type(&mnemonic)
            && let Some([ty]) = stated.as_deref()
        {
            for (key, attr) in [dtype_attr(ty), shape_attr(ty)] {
                attrs.0.entry(key.into()).or_insert(attr);
            }
        }
        let op = Op::parse(&mnemonic, attrs)
            .map_err(|message| Fault::new("P0303", op_span.clone(), message))?;
        let operands: Vec<&TensorType> = inputs.iter().map(|&v| self.graph.ty(v)).collect();
        let inferred = op
            .def()
            .infer(&operands)
            .map_err(|e| Fault::new("P0305", op_span.clone(), format!("`{mnemonic}`: {e}")))?;
        if inferred.iter().any(|t| too_large(&t.shape)) {
            let message = "the result is larger than any memory";
            return Err(Fault::new("P0306", op_span, message));
        }
        if inferred.len() != labels.len() {
            let message =
                format!("`{mnemonic}` has {} results, {} are named", inferred.len(), labels.len());
            return Err(Fault::new("P0304", line, message));
        }
        let types = stated.unwrap_or_else(|| inferred.clone());
        let follows = types.len() == inferred.len()
            && types.iter().zip(&inferred).all(|(s, i)| s.shape == i.shape && s.kind() == i.kind());
        if !follows {
            let list = |types: &[TensorType]| {
                types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            };
            let message = format!("`{mnemonic}` gives {}, not {}", list(&inferred), list(&types));
            return Err(Fault::new("P0305", op_span, message));
        }
        let outputs = self.graph.push(op, &inputs, types, name, region);
        for (label, value) in labels.into_iter().zip(outputs) {
            self.values.insert(label, Some(value));
        }
        Ok(())
    }
}

fn too_large(shape: &Shape) -> bool {
    let n = shape.iter().try_fold(1u64, |n, &d| n.checked_mul((d as u64).max(1)));
    n.is_none_or(|n| n > MAX_ELEMENTS)
}

/// Numbers that are spelled as words.
fn special(word: &str) -> Option<f64> {
    match word {
        "inf" => Some(f64::INFINITY),
        "nan" => Some(f64::NAN),
        _ => None,
    }
}

fn suggest<'a>(word: &str, set: impl Iterator<Item = &'a str>) -> String {
    let near = set
        .map(|w| (strsim::damerau_levenshtein(word, w), w))
        .filter(|(d, w)| *d <= 1 + w.len().min(word.len()) / 4)
        .min_by_key(|(d, w)| (*d, w.len().abs_diff(word.len())));
    near.map_or(String::new(), |(_, w)| format!("did you mean `{w}`?"))
}
