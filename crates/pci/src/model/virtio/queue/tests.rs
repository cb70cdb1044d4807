use super::*;

#[test]
fn an_index_passes_what_is_waited_for_whether_or_not_it_wraps() {
    assert!(passed(0, 0, 1) && passed(4, 3, 6) && passed(5, 3, 6));
    assert!(!passed(6, 3, 6) && !passed(2, 3, 6), "neither before nor behind");
    assert!(passed(0xffff, 0xfffe, 1) && passed(0, 0xfffe, 1));
    assert!(!passed(1, 0xfffe, 1));
}

#[test]
fn a_part_of_segments_is_cut_where_it_is_wanted() {
    let segment = |iova, length| Segment { iova, length };
    let all = [segment(100, 10), segment(200, 5), segment(300, 20)];
    let cut = |start, length| part(&all, start, length).to_vec();
    assert_eq!(cut(0, 35), all);
    assert_eq!(cut(9, 2), [segment(109, 1), segment(200, 1)]);
    assert_eq!(cut(10, 5), [segment(200, 5)]);
    assert_eq!(cut(15, 100), [segment(300, 20)], "there is no more");
    assert_eq!(cut(3, 0), []);
    assert_eq!(cut(35, 1), []);
}
