//! Reading one statement: expectations over its tokens, types, attributes and literals.

use super::lex::{Spanned, Token};
use crate::ir::{Attr, ConstData, Shape, TensorType};
use precast_plan::DType;
use std::ops::Range;

/// More elements than any tensor has; keeps products of extents within 64 bits.
const MAX_ELEMENTS: u64 = 1 << 44;
/// A splat literal allocates what it says.
const MAX_SPLAT_BYTES: u64 = 1 << 28;

/// An error before it has its text. `silent` ones follow from one already reported.
pub struct Fault {
    pub code: &'static str,
    pub span: Range<usize>,
    pub message: String,
    pub help: Option<String>,
    pub silent: bool,
}

pub type Parsed<T> = std::result::Result<T, Fault>;

impl Fault {
    pub fn new(code: &'static str, span: Range<usize>, message: impl Into<String>) -> Fault {
        Fault { code, span, message: message.into(), help: None, silent: false }
    }
    pub fn help(mut self, help: impl Into<String>) -> Fault {
        self.help = Some(help.into());
        self
    }
}

/// The tokens of one statement and how far it has been read.
pub struct Line<'a> {
    tokens: &'a [Spanned],
    at: usize,
    end: usize,
}

impl<'a> Line<'a> {
    pub fn new(tokens: &'a [Spanned], end: usize) -> Line<'a> {
        Line { tokens, at: 0, end }
    }

    pub fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(t, _)| t)
    }

    /// Where the next token is, or the end of the line.
    pub fn span(&self) -> Range<usize> {
        self.tokens.get(self.at).map_or(self.end..self.end, |(_, s)| s.clone())
    }

    pub fn expected<T>(&self, what: &str) -> Parsed<T> {
        let found = self.peek().map_or("the end of the line".into(), Token::describe);
        Err(Fault::new("P0301", self.span(), format!("expected {what}, found {found}")))
    }

    pub fn eat(&mut self, c: char) -> bool {
        let here = self.peek() == Some(&Token::Punct(c));
        self.at += usize::from(here);
        here
    }

    pub fn punct(&mut self, c: char) -> Parsed<()> {
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

    pub fn word(&mut self, what: &str) -> Parsed<String> {
        self.take(what, |t| if let Token::Word(w) = t { Some(w.clone()) } else { None })
    }

    pub fn name(&mut self) -> Parsed<String> {
        self.take("a name", |t| match t {
            Token::Word(w) | Token::Str(w) => Some(w.clone()),
            _ => None,
        })
    }

    pub fn string(&mut self) -> Parsed<String> {
        self.take("a string", |t| if let Token::Str(s) = t { Some(s.clone()) } else { None })
    }

    pub fn label(&mut self) -> Parsed<String> {
        self.take("a value", |t| if let Token::Value(v) = t { Some(v.clone()) } else { None })
    }

    fn int(&mut self) -> Parsed<i64> {
        self.take("an integer", |t| if let Token::Int(x) = t { Some(*x) } else { None })
    }

    pub fn real(&mut self) -> Parsed<f64> {
        self.take("a number", |t| match t {
            Token::Int(x) => Some(*x as f64),
            Token::Real(x) => Some(*x),
            Token::Word(w) => special(w),
            _ => None,
        })
    }

    pub fn stream(&mut self) -> Parsed<u32> {
        let span = self.span();
        let x = self.int()?;
        u32::try_from(x).map_err(|_| Fault::new("P0301", span, "a stream is a 32-bit number"))
    }

    /// A place in a file, in bytes.
    pub fn offset(&mut self) -> Parsed<u64> {
        let span = self.span();
        let x = self.int()?;
        u64::try_from(x).map_err(|_| Fault::new("P0301", span, "an offset is not negative"))
    }

    /// `ITEM, ITEM, … CLOSE`, the opening bracket already read.
    pub fn list<T>(
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

    pub fn finish(&self) -> Parsed<()> {
        if self.at == self.tokens.len() { Ok(()) } else { self.expected("the end of the line") }
    }

    /// An element format.
    pub fn format(&mut self) -> Parsed<DType> {
        let span = self.span();
        let word = self.word("an element format, such as `f32`")?;
        word.parse().map_err(|_| {
            Fault::new("P0301", span, format!("unknown element format `{word}`"))
                .help(suggest(&word, DType::ALL.iter().map(|d| d.name())))
        })
    }

    pub fn ty(&mut self) -> Parsed<TensorType> {
        let span = self.span();
        let dtype = self.format()?;
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

    pub fn attr(&mut self) -> Parsed<Attr> {
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
    pub fn literal(&mut self) -> Parsed<ConstData> {
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

pub fn too_large(shape: &Shape) -> bool {
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

pub fn suggest<'a>(word: &str, set: impl Iterator<Item = &'a str>) -> String {
    let near = crate::diagnostic::nearest(word, set);
    near.map_or(String::new(), |w| format!("did you mean `{w}`?"))
}
