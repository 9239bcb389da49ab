"use strict";
course.view("lesson", {
  title: "Lessons",
  show(main) {
    for (const lesson of course.data("lessons")) main.append(course.element("h2", {}, lesson.title));
  },
});
