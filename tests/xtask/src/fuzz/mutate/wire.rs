//! ONNX files as protobuf messages. The table of messages is ours, so that a field is decoded as what
//! it is; fields that it does not name are kept as they lie.

use super::INTEGERS;
use super::rng::Rng;

/// Messages of `onnx.proto` that hold others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Model,
    Opset,
    Graph,
    Node,
    Attribute,
    Tensor,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    Dim,
    Entry,
}

impl Message {
    /// What a field of this number holds, where it is a message.
    fn field(self, number: u64) -> Option<Message> {
        use Message::*;
        Some(match (self, number) {
            (Model, 7) | (Attribute, 6) => Graph,
            (Model, 8) => Opset,
            (Graph, 1) => Node,
            (Graph, 5) | (Attribute, 5) => Tensor,
            (Graph, 11..=13) => ValueInfo,
            (Graph, 16) | (Node, 9) | (Tensor, 13) | (ValueInfo, 4) => Entry,
            (Node, 5) => Attribute,
            (ValueInfo, 2) => Type,
            (Type, 1) => TensorType,
            (TensorType, 2) => Shape,
            (Shape, 1) => Dim,
            _ => return None,
        })
    }

    /// Whether a field holds numbers one after the other.
    fn packed(self, number: u64) -> bool {
        matches!((self, number), (Message::Attribute, 8) | (Message::Tensor, 1 | 5 | 7 | 11))
    }
}

/// A field's value.
#[derive(Clone, Debug)]
enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(Vec<u8>),
    Message(Message, Vec<Field>),
}

#[derive(Clone, Debug)]
struct Field {
    number: u64,
    value: Value,
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut x = 0u64;
    for shift in (0..64).step_by(7) {
        let b = *bytes.get(*at)?;
        *at += 1;
        x |= u64::from(b & 127) << shift;
        if b < 128 {
            return Some(x);
        }
    }
    None
}

fn put_varint(mut x: u64, out: &mut Vec<u8>) {
    while x >= 128 {
        out.push(x as u8 | 128);
        x >>= 7;
    }
    out.push(x as u8);
}

fn decode(message: Message, bytes: &[u8]) -> Option<Vec<Field>> {
    let (mut at, mut out) = (0, vec![]);
    while at < bytes.len() {
        let key = varint(bytes, &mut at)?;
        let number = key >> 3;
        let value = match key & 7 {
            0 => Value::Varint(varint(bytes, &mut at)?),
            1 => {
                at += 8;
                Value::Fixed64(bytes.get(at - 8..at)?.try_into().ok()?)
            }
            5 => {
                at += 4;
                Value::Fixed32(bytes.get(at - 4..at)?.try_into().ok()?)
            }
            2 => {
                let n = usize::try_from(varint(bytes, &mut at)?).ok()?;
                let piece = bytes.get(at..at.checked_add(n)?)?;
                at += n;
                match message.field(number).and_then(|m| Some((m, decode(m, piece)?))) {
                    Some((m, fields)) => Value::Message(m, fields),
                    None => Value::Bytes(piece.to_vec()),
                }
            }
            _ => return None,
        };
        out.push(Field { number, value });
    }
    Some(out)
}

fn encode(fields: &[Field], out: &mut Vec<u8>) {
    let mut inner = vec![];
    for f in fields {
        let key = |wire: u64, out: &mut Vec<u8>| put_varint(f.number << 3 | wire, out);
        match &f.value {
            Value::Varint(x) => {
                key(0, out);
                put_varint(*x, out);
            }
            Value::Fixed64(b) => {
                key(1, out);
                out.extend_from_slice(b);
            }
            Value::Fixed32(b) => {
                key(5, out);
                out.extend_from_slice(b);
            }
            Value::Bytes(b) => {
                key(2, out);
                put_varint(b.len() as u64, out);
                out.extend_from_slice(b);
            }
            Value::Message(_, fields) => {
                inner.clear();
                encode(fields, &mut inner);
                key(2, out);
                put_varint(inner.len() as u64, out);
                out.extend_from_slice(&inner);
            }
        }
    }
}

/// Messages by their paths, the root first.
fn messages(at: &mut Vec<usize>, fields: &[Field], out: &mut Vec<Vec<usize>>) {
    out.push(at.clone());
    for (i, f) in fields.iter().enumerate() {
        if let Value::Message(_, inner) = &f.value {
            at.push(i);
            messages(at, inner, out);
            at.pop();
        }
    }
}

fn find<'f>(
    message: Message,
    fields: &'f mut Vec<Field>,
    path: &[usize],
) -> (Message, &'f mut Vec<Field>) {
    path.iter().fold((message, fields), |(_, fields), &i| match &mut fields[i].value {
        Value::Message(m, inner) => (*m, inner),
        _ => unreachable!("paths lead through messages"),
    })
}

/// Short strings of a model: names of values, operators and attributes.
fn strings(fields: &[Field], out: &mut Vec<Vec<u8>>) {
    for f in fields {
        match &f.value {
            Value::Bytes(b) if b.len() < 64 && b.is_ascii() => out.push(b.clone()),
            Value::Message(_, inner) => strings(inner, out),
            _ => {}
        }
    }
}

/// A model with one field changed; `None` where it is no model.
pub fn mutate(input: &[u8], other: &[u8], rng: &mut Rng) -> Option<Vec<u8>> {
    let mut root = decode(Message::Model, input)?;
    let mut all = vec![];
    messages(&mut vec![], &root, &mut all);
    // Dims, attributes and nodes are many, and the model's own fields few: a message first, then a
    // field of it.
    let path = rng.of(&all)?.clone();
    let mut names = vec![];
    strings(&root, &mut names);
    let theirs = decode(Message::Model, other).unwrap_or_default();
    if rng.one_in(4) {
        strings(&theirs, &mut names);
    }
    let (message, fields) = find(Message::Model, &mut root, &path);
    if fields.is_empty() {
        // An empty message gets a first field: a scalar dimension, an attribute without a type.
        fields
            .push(Field { number: 1 + rng.below(4) as u64, value: Value::Varint(rng.next() % 64) });
    }
    let i = rng.below(fields.len());
    match rng.below(12) {
        0 => {
            fields.remove(i);
        }
        1 => {
            let again = fields[i].clone();
            fields.insert(i, again);
        }
        2 => {
            let j = rng.below(fields.len());
            fields.swap(i, j);
        }
        3 => fields[i].number = 1 + rng.below(26) as u64,
        4 => {
            // A part of another model.
            let mut paths = vec![];
            messages(&mut vec![], &theirs, &mut paths);
            let mut theirs = theirs;
            if let Some(from) = rng.of(&paths) {
                let (kind, list) = find(Message::Model, &mut theirs, from);
                if kind == message
                    && let Some(f) = rng.of(list)
                {
                    fields.insert(i, f.clone());
                }
            }
        }
        _ => {
            let packed = message.packed(fields[i].number);
            change(&mut fields[i].value, packed, &names, rng);
        }
    }
    let mut out = Vec::with_capacity(input.len() + 16);
    encode(&root, &mut out);
    Some(out)
}

fn change(value: &mut Value, packed: bool, names: &[Vec<u8>], rng: &mut Rng) {
    match value {
        Value::Varint(x) => {
            *x = match rng.below(3) {
                0 => x.wrapping_add(1),
                1 => x.wrapping_sub(1),
                _ => *rng.of(INTEGERS).expect("there are some") as u64,
            }
        }
        Value::Fixed64(b) => *b = rng.next().to_le_bytes(),
        Value::Fixed32(b) => {
            let reals = [0.0f32, -1.0, 1e38, f32::NAN, f32::INFINITY, 1e-45, 0.5, 2.0];
            *b = reals[rng.below(reals.len())].to_le_bytes();
        }
        Value::Bytes(b) if packed => {
            let (mut at, mut list) = (0, vec![]);
            while let Some(x) = varint(b, &mut at) {
                list.push(x);
            }
            let i = rng.below(list.len());
            match rng.below(4) {
                0 if !list.is_empty() => {
                    list.remove(i);
                }
                1 => list.insert(i, *rng.of(INTEGERS).expect("there are some") as u64),
                _ if !list.is_empty() => {
                    list[i] = match rng.one_in(2) {
                        true => list[i].wrapping_add([1, u64::MAX][rng.below(2)]),
                        false => *rng.of(INTEGERS).expect("there are some") as u64,
                    }
                }
                _ => {}
            }
            b.clear();
            list.into_iter().for_each(|x| put_varint(x, b));
        }
        Value::Bytes(b) => match rng.of(names) {
            Some(name) if !rng.one_in(4) => *b = name.clone(),
            _ => *b = super::bytes::mutate(b, b, rng),
        },
        Value::Message(_, fields) => fields.clear(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_come_back_as_they_were() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/mlp_mnist/model.onnx");
        let bytes = std::fs::read(path).expect("the fixture is there");
        let fields = decode(Message::Model, &bytes).expect("a model");
        let mut out = vec![];
        encode(&fields, &mut out);
        assert_eq!(out, bytes);
        let mut all = vec![];
        messages(&mut vec![], &fields, &mut all);
        assert!(all.len() > 30, "{} messages", all.len());
    }
}
