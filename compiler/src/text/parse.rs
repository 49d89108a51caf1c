//! Text to graph. A line is a statement; an error ends its line and reading goes on, so one run
//! reports all of them. Values of a faulty line are known to be unknown, and cause no errors
//! downstream.

use super::lex::{Spanned, Token, lex};
use super::line::{Fault, Line, Parsed, suggest, too_large};
use super::print::{dtype_attr, shape_attr};
use super::{REGIONS, ROLES, repeats_type};
use crate::diagnostic::{Diagnostic, Diagnostics, Place, Result};
use crate::ir::{AttrMap, Graph, Region, Result_, TensorType, ValueId, Var, VarInit};
use crate::ops::Op;
use rustc_hash::FxHashMap;
use std::path::{Path, PathBuf};

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
                let mut cx = Line::new(&tokens, end);
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
            "channels_last_of" => VarInit::ChannelsLastOf(l.string()?),
            "file" => {
                let path = l.string()?;
                l.punct(',')?;
                let offset = l.offset()?;
                l.punct(',')?;
                VarInit::File { path, offset, dtype: l.format()? }
            }
            _ => {
                let inits = [
                    "zeros",
                    "value",
                    "weights",
                    "uniform",
                    "normal",
                    "data",
                    "copy_of",
                    "channels_last_of",
                    "file",
                ];
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
