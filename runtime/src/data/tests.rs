use super::tensors::{Files, TensorRows};
use super::*;
use crate::tensors::write_tensors;
use std::collections::BTreeMap;
use std::path::Path;

fn wanted(name: &str, dtype: DType, shape: &[u64]) -> Wanted {
    Wanted { name: name.into(), dtype, shape: shape.to_vec(), classes: None }
}

fn field(input: &str, column: &str) -> Field {
    Field { input: input.into(), columns: Columns::Name(column.into()), scale: 1.0, shift: 0.0 }
}

fn spec(source: DataSource, batch: Option<u64>, fields: Vec<Field>) -> DataSpec {
    DataSpec { source, batch, fields, shuffle: true, seed: 3, split: 0.0, allow_nonfinite: false }
}

fn ids(batch: &Batch) -> Vec<i64> {
    let bytes = &batch.tensors.last().unwrap().1;
    bytes.chunks(8).map(|c| i64::from_le_bytes(c.try_into().unwrap())).collect()
}

fn file(dir: &Path, first: u64, rows: u64) -> PathBuf {
    let path = dir.join(format!("{first}.safetensors"));
    let x: Vec<u8> = (first * 4..(first + rows) * 4).map(|i| i as u8).collect();
    let y: Vec<u8> = (first as i32..(first + rows) as i32).flat_map(|i| i.to_le_bytes()).collect();
    let tensors = BTreeMap::from([
        ("x".to_string(), (DType::U8, vec![rows, 2, 2], x)),
        ("y".to_string(), (DType::I32, vec![rows], y)),
    ]);
    write_tensors(&path, &BTreeMap::new(), &tensors).unwrap();
    path
}

#[test]
fn epochs_visit_every_row_once_in_an_order_the_seed_fixes() {
    let dir = tempfile::tempdir().unwrap();
    let files = vec![file(dir.path(), 0, 7), file(dir.path(), 7, 6)];
    let mut s =
        spec(DataSource::Safetensors { files }, Some(3), vec![field("x", "x"), field("y", "y")]);
    s.fields[0].scale = 0.5;
    s.split = 0.25;
    let want = [wanted("x", DType::F32, &[3, 4]), wanted("y", DType::I64, &[3])];
    let mut data = Dataset::open(&s, &want).unwrap();
    assert_eq!((data.rows(), data.batches_per_epoch()), ((10, 3), 3));
    let test: Vec<i64> = data.test_batches().flat_map(|b| ids(&b.unwrap())).collect();
    let first: Vec<Batch> = (0..3).map(|_| data.next_batch().unwrap()).collect();
    let mut seen: Vec<i64> = first.iter().flat_map(ids).collect();
    let again = {
        let mut other = Dataset::open(&s, &want).unwrap();
        let position = Position { epoch: 0, batch: 1 };
        other.resume(&DataState { position, ..other.state() }).unwrap();
        other.next_batch().unwrap()
    };
    assert_eq!(again, first[1]);
    let second: Vec<i64> = (0..3).flat_map(|_| ids(&data.next_batch().unwrap())).collect();
    assert_ne!(seen, second, "epochs have orders of their own");
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 9);
    assert!(test.iter().all(|t| !seen.contains(t) && !second.contains(t)), "test rows leak");
    let row = |b: &Batch, i: usize| {
        f32::from_le_bytes(b.tensors[0].1[i * 16..i * 16 + 4].try_into().unwrap())
    };
    for b in &first {
        for (i, &id) in ids(b).iter().enumerate() {
            assert_eq!(row(b, i), id as f32 * 2.0);
        }
    }
}

#[test]
fn the_last_test_batch_is_padded() {
    let dir = tempfile::tempdir().unwrap();
    let files = vec![file(dir.path(), 0, 13)];
    let mut s = spec(DataSource::Safetensors { files }, Some(2), vec![field("y", "y")]);
    s.split = 0.4;
    let data = Dataset::open(&s, &[wanted("y", DType::I64, &[2])]).unwrap();
    let rows: Vec<u64> = data.test_batches().map(|b| b.unwrap().rows).collect();
    assert_eq!(rows, [2, 2, 1]);
}

#[test]
fn tables_find_columns_by_name_and_range() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.csv");
    std::fs::write(&path, "label,p0,p1,p2\n3,0.5,1,1.5\n4,2,2.5,3\n").unwrap();
    let files = vec![path];
    let mut s = spec(
        DataSource::Csv { files, header: true },
        None,
        vec![field("x", "p0..p2"), field("y", "label")],
    );
    s.shuffle = false;
    let want = [wanted("x", DType::F32, &[2, 3]), wanted("y", DType::I64, &[2])];
    let mut data = Dataset::open(&s, &want).unwrap();
    let b = data.next_batch().unwrap();
    assert_eq!(ids(&b), [3, 4]);
    let x: Vec<f32> =
        b.tensors[0].1.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
    assert_eq!(x, [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]);
    s.fields[1].columns = Columns::Name("lable".into());
    let e = Dataset::open(&s, &want).err().unwrap();
    assert_eq!(e.code, "R0413");
    assert!(e.to_string().contains("did you mean `label`?"), "{e}");
    s.fields[1].columns = Columns::Name("nothing".into());
    let e = Dataset::open(&s, &want).err().unwrap();
    assert!(e.to_string().contains("its columns are label, p0"), "{e}");
    s.fields[1].columns = Columns::List(vec!["p0".into(), "p1".into()]);
    assert_eq!(Dataset::open(&s, &want).err().unwrap().code, "R0411");
    s.fields[1].columns = Columns::Name("p0".into());
    let mut data = Dataset::open(&s, &want).unwrap();
    let e = data.next_batch().unwrap_err();
    assert_eq!(
        (e.code, e.place.as_deref()),
        ("R0201", Some(&*format!("{}: row 0, for input `y`", dir.path().join("t.csv").display())))
    );
}

#[test]
fn text_is_cut_into_windows_and_their_successors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.txt");
    std::fs::write(&path, "abcdefghij").unwrap();
    let mut s = spec(
        DataSource::Bytes { files: vec![path], context: 3 },
        Some(1),
        vec![field("x", "window"), field("y", "next")],
    );
    s.shuffle = false;
    let want = [wanted("x", DType::I64, &[1, 3]), wanted("y", DType::I64, &[1, 3])];
    let mut data = Dataset::open(&s, &want).unwrap();
    assert_eq!(data.rows(), (3, 0));
    data.next_batch().unwrap();
    let b = data.next_batch().unwrap();
    let text = |k: usize| -> Vec<u8> { b.tensors[k].1.chunks(8).map(|c| c[0]).collect() };
    assert_eq!((text(0), text(1)), (b"def".to_vec(), b"efg".to_vec()));
}

#[test]
fn faults_name_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let source = || DataSource::Safetensors { files: vec![file(dir.path(), 0, 5)] };
    let open = |s: DataSpec, w: &[Wanted]| Dataset::open(&s, w).err().unwrap();
    let e =
        open(spec(source(), Some(2), vec![field("x", "x")]), &[wanted("x", DType::F32, &[2, 5])]);
    assert!(e.to_string().contains("[2, 2]") && e.to_string().contains("[5]"), "{e}");
    let e = open(spec(source(), Some(2), vec![]), &[wanted("x", DType::F32, &[2, 4])]);
    assert_eq!(e.code, "R0402");
    let e =
        open(spec(source(), Some(6), vec![field("x", "x")]), &[wanted("x", DType::F32, &[6, 4])]);
    assert_eq!(e.code, "R0407");
    let e =
        open(spec(source(), Some(4), vec![field("x", "x")]), &[wanted("x", DType::F32, &[6, 4])]);
    assert_eq!(e.code, "R0401");
    let e =
        open(spec(source(), Some(2), vec![field("x", "z")]), &[wanted("x", DType::F32, &[2, 4])]);
    assert_eq!(e.code, "R0204");
    let none = DataSource::Safetensors { files: vec![dir.path().join("none")] };
    let e = open(spec(none, Some(2), vec![field("x", "x")]), &[wanted("x", DType::F32, &[2, 4])]);
    assert_eq!(e.code, "R0203");
}

#[test]
fn rows_of_the_same_rank_have_the_same_extents() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.safetensors");
    let tensors = BTreeMap::from([("x".to_string(), (DType::U8, vec![4, 2, 3], vec![0; 24]))]);
    write_tensors(&path, &BTreeMap::new(), &tensors).unwrap();
    let source = || DataSource::Safetensors { files: vec![path.clone()] };
    let open = |shape: &[u64]| {
        let s = spec(source(), Some(2), vec![field("x", "x")]);
        Dataset::open(&s, &[wanted("x", DType::F32, shape)]).map(|_| ())
    };
    for shape in [&[2, 2, 3][..], &[2, 6], &[2, 1, 2, 3]] {
        open(shape).unwrap_or_else(|e| panic!("{shape:?}: {e}"));
    }
    let e = open(&[2, 3, 2]).unwrap_err();
    assert_eq!(e.code, "R0411");
    assert!(e.to_string().contains("[2, 3]") && e.to_string().contains("[3, 2]"), "{e}");
}

/// Batches in memory that is used again are those in memory of their own; one that somebody holds is left alone.
#[test]
fn a_batch_takes_the_memory_of_the_one_before_once_nobody_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let files = vec![file(dir.path(), 0, 13)];
    let s =
        spec(DataSource::Safetensors { files }, Some(3), vec![field("x", "x"), field("y", "y")]);
    let want = [wanted("x", DType::F32, &[3, 4]), wanted("y", DType::I64, &[3])];
    let mut data = Dataset::open(&s, &want).unwrap();
    let mut other = Dataset::open(&s, &want).unwrap();
    let memory = |b: &Batch| b.tensors.iter().map(|t| t.1.as_ptr()).collect::<Vec<_>>();
    let first = data.next_shared().unwrap();
    let place = memory(&first);
    assert_eq!(*first, other.next_batch().unwrap());
    drop(first);
    // Into the next epoch, whose order is another.
    for _ in 0..5 {
        let batch = data.next_shared().unwrap();
        assert_eq!((&*batch, memory(&batch)), (&other.next_batch().unwrap(), place.clone()));
    }
    let held = data.next_shared().unwrap();
    let copy = Batch::clone(&held);
    assert_eq!(copy, other.next_batch().unwrap());
    let next = data.next_shared().unwrap();
    assert_ne!(memory(&next), memory(&held));
    assert_eq!((&*held, &*next), (&copy, &other.next_batch().unwrap()));
}

/// Rows that are kept in memory and rows that are read as they are drawn are the same rows.
#[test]
fn rows_that_are_not_kept_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let files = vec![file(dir.path(), 0, 7), file(dir.path(), 7, 6)];
    let field = field("x", "x");
    let kept = TensorRows::open(&mut Files::default(), &files, &field).unwrap();
    let read = TensorRows::open(&mut Files::with_room(0), &files, &field).unwrap();
    // The first file's rows alone fit.
    let both = TensorRows::open(&mut Files::with_room(7 * 4 + 1), &files, &field).unwrap();
    for (dtype, affine) in
        [(DType::U8, (1.0, 0.0)), (DType::F32, (0.5, 1.0)), (DType::I64, (1.0, 0.0))]
    {
        let all = |rows: &TensorRows, most: u64| {
            let (mut raw, mut out, mut r) = (vec![], vec![], 0);
            while r < 13 {
                let n =
                    rows.read((r, most.min(13 - r)), dtype, affine, &mut raw, &mut out).unwrap();
                assert!(n >= 1 && (r >= 7 || r + n <= 7), "no run crosses files");
                r += n;
            }
            out
        };
        let want = all(&kept, 1);
        assert_eq!(want.len(), 13 * 4 * dtype.size());
        for rows in [&kept, &read, &both] {
            for most in [1, 2, 5, 13] {
                assert_eq!(all(rows, most), want, "{dtype}, at most {most}");
            }
        }
    }
    for r in 0..13 {
        assert_eq!(read.value(r, 3).unwrap(), kept.value(r, 3).unwrap());
    }
    // Cut in the second row of the second file, of 4 bytes each behind the header.
    let whole = std::fs::read(&files[1]).unwrap();
    let second = std::fs::File::options().write(true).open(&files[1]).unwrap();
    let at = whole.windows(4).rposition(|w| w == [32, 33, 34, 35]).unwrap() as u64;
    second.set_len(at + 2).unwrap();
    let (mut raw, mut out) = (vec![], vec![]);
    let e = read.read((8, 5), DType::U8, (1.0, 0.0), &mut raw, &mut out).unwrap_err();
    assert_eq!(e.code, "R0417");
    assert!(e.message.contains("was cut from"), "{e}");
    assert!(e.place.as_ref().unwrap().ends_with("7.safetensors: row 1"), "{e}");
    out.clear();
    assert_eq!(read.read((6, 1), DType::U8, (1.0, 0.0), &mut raw, &mut out).unwrap(), 1);
}

#[test]
fn what_is_not_finite_is_refused_where_it_is_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let mut x = [1.0f32; 30];
    x[3 * 4 + 1] = f32::NAN;
    let bytes = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    let tensors = BTreeMap::from([("x".to_string(), (DType::F32, vec![10, 3], bytes))]);
    write_tensors(&path, &BTreeMap::new(), &tensors).unwrap();
    let files = vec![path];
    let mut s = spec(DataSource::Safetensors { files }, Some(2), vec![field("x", "x")]);
    s.shuffle = false;
    let want = [wanted("x", DType::F32, &[2, 3])];
    let mut data = Dataset::open(&s, &want).unwrap();
    data.next_batch().unwrap();
    data.next_batch().unwrap();
    let e = data.next_batch().unwrap_err();
    assert_eq!((e.code, &*e.message), ("R0418", "element [1] of `x` is NaN"));
    assert!(e.place.unwrap().ends_with("a.safetensors: row 4, for input `x`"));
    s.allow_nonfinite = true;
    let mut data = Dataset::open(&s, &want).unwrap();
    assert!((0..5).all(|_| data.next_batch().is_ok()));
    // Scaled, it is more than f32 holds.
    s.allow_nonfinite = false;
    s.fields[0].scale = 1e39;
    let e = Dataset::open(&s, &want).unwrap().next_batch().unwrap_err();
    assert_eq!(
        e.message,
        "element [0] of `x` is 1e0, which, scaled and shifted, is more than f32 holds"
    );
}
