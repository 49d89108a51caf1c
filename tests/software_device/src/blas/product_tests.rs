//! FP8 operands: what their bits mean, and what the library refuses.

use super::*;

#[test]
fn eight_bits_are_open_computes_formats() {
    let cases = [
        (E4M3, 0x38, 1.0),
        (E4M3, 0x7e, 448.0),
        (E4M3, 0x01, 2f32.powi(-9)),
        (E4M3, 0xb8, -1.0),
        (E5M2, 0x3c, 1.0),
        (E5M2, 0x7b, 57344.0),
        (E5M2, 0x01, 2f32.powi(-16)),
        (E5M2, 0x7c, f32::INFINITY),
    ];
    for (dtype, bits, want) in cases {
        assert_eq!(eight_bits(bits, dtype), want, "{bits:#x} of {dtype}");
    }
    assert!(eight_bits(0x7f, E4M3).is_nan() && eight_bits(0x7d, E5M2).is_nan());
}

/// 32 x 48 of a depth of 64: A transposed, B not.
fn product() -> (Desc, [Layout; 4]) {
    let desc = Desc {
        compute: F32_COMPUTE,
        scale: F32,
        pointer_mode: 0,
        transpose_a: true,
        transpose_b: false,
        epilogue: 4,
        bias: 256,
        bias_dtype: None,
        bias_stride: 0,
        aux: 0,
        aux_ld: 0,
        aux_dtype: None,
        aux_stride: 0,
        scales: [512, 0],
    };
    let layout = |dtype, rows, columns| Layout {
        dtype,
        rows,
        columns,
        ld: rows as i64,
        order: 0,
        batch: 1,
        stride: 0,
    };
    let d = layout(BF16, 32, 48);
    (desc, [layout(E4M3, 64, 32), layout(E5M2, 64, 48), d, d])
}

type Change = dyn Fn(&mut Desc, &mut [Layout; 4]);

#[test]
fn eight_bit_products_outside_the_table_are_refused() {
    let said = |change: &Change| {
        let (mut desc, mut l) = product();
        change(&mut desc, &mut l);
        let [a, b, c, d] = &l;
        check(&desc, [a, b, c, d])
    };
    assert_eq!(said(&|_, _| {}), Ok(()));
    let refused: [(&str, &Change); 6] = [
        ("both E5M2", &|_, l| l[0].dtype = E5M2),
        ("one in 16 bits", &|_, l| l[1].dtype = BF16),
        ("a result in 8 bits", &|_, l| (l[2].dtype, l[3].dtype) = (E4M3, E4M3)),
        ("sums of an operand", &|d, _| d.epilogue = 256),
        ("B transposed", &|d, l| {
            d.transpose_b = true;
            (l[1].rows, l[1].columns, l[1].ld) = (48, 64, 48);
        }),
        ("40 columns", &|_, l| (1..4).for_each(|i| l[i].columns = 40)),
    ];
    for (what, change) in refused {
        assert_eq!(said(change), Err(NOT_SUPPORTED), "{what}");
    }
    assert_eq!(said(&|d, _| d.bias_dtype = Some(F32)), Err(INVALID_VALUE));
    // A factor of an operand is for 8 bits alone.
    let wide = said(&|_, l| (l[0].dtype, l[1].dtype) = (BF16, BF16));
    assert_eq!(wide, Err(INVALID_VALUE));
}
