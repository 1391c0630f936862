"""Operations and their doors: DRF views for people, the JSON lane for programs."""
