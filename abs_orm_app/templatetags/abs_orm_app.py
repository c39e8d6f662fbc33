"""`{% load abs_orm_app %}`: the page's filters for numbers, times and names."""

from __future__ import annotations

from django.template import Library

from abs_orm_app.facts.wording import LEVELS, option_in_words
from abs_orm_app.integrations.admin_page import wording
from abs_orm_app.integrations.admin_page.diagnosis import holder_name

register = Library()
for function in (
    holder_name,
    option_in_words,
    wording.amount,
    wording.duration,
    wording.key,
    wording.pids,
    wording.pins,
    wording.place,
    wording.session,
    wording.setting_value,
):
    register.filter(function.__name__, function)
register.filter("level", lambda level: LEVELS[level].lower())
