//! The highest rate that passes: [`search`], by halving, as RFC 2544 section 26.1 and RFC 9693 section 4.5 search.
//!
//! Rates are in any unit. Nothing is known of the trials but whether they pass.

/// The highest rate up to `top` at which `trial` passes, to within `resolution` (a share of `top`); 0 if none does. A rate
/// passes if one of `tries` trials at it does: on a machine whose host takes the core away now and then, one failure says
/// nothing.
pub(crate) fn search<E>(
    top: f64,
    resolution: f64,
    tries: u32,
    mut trial: impl FnMut(f64) -> Result<bool, E>,
) -> Result<f64, E> {
    let mut passes = |rate: f64| -> Result<bool, E> {
        for _ in 0..tries.max(1) {
            if trial(rate)? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    if passes(top)? {
        return Ok(top);
    }
    let (mut passed, mut failed) = (0.0, top);
    while failed - passed > resolution * top {
        let middle = (passed + failed) / 2.0;
        if passes(middle)? {
            passed = middle;
        } else {
            failed = middle;
        }
    }
    Ok(passed)
}
